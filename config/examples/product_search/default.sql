INSERT INTO product_search (product_id, title, body, document)
VALUES (:stream_id, :data.title, :data.description?, :data)
ON DUPLICATE KEY UPDATE title = :data.title, body = :data.description?, document = :data;
