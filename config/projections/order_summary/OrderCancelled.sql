UPDATE order_summary
SET status = 'cancelled', updated_at = :occurred_at
WHERE order_id = :stream_id;
