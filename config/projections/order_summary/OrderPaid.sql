UPDATE order_summary
SET status = 'paid', paid = paid + :data.amount, updated_at = :occurred_at
WHERE order_id = :stream_id;
