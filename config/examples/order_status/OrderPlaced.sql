INSERT INTO order_status (order_id, status, changed_at) VALUES (:stream_id, 'placed', :occurred_at);
