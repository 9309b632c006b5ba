-- projector: rows = 1
UPDATE order_status SET status = 'shipped', changed_at = :occurred_at WHERE order_id = :stream_id;
