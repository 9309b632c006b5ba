UPDATE order_summary
SET status = 'refunded', refunded = refunded + :data.amount, updated_at = :occurred_at
WHERE order_id = :stream_id;
