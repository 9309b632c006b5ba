UPDATE order_summary
SET status = 'packed', updated_at = :occurred_at
WHERE order_id = :stream_id;
