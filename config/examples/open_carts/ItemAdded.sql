INSERT INTO open_carts (cart_id, items) VALUES (:stream_id, 1)
ON DUPLICATE KEY UPDATE items = items + 1;
