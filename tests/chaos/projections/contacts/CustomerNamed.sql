INSERT INTO contact_names (customer_id, name) VALUES (:stream_id, :data.name)
ON DUPLICATE KEY UPDATE name = :data.name;

UPDATE order_contacts SET name = :data.name WHERE customer_id = :stream_id;
