UPDATE order_summary
SET status = 'shipped', parcels = parcels + 1, updated_at = :occurred_at
WHERE order_id = :stream_id;
