INSERT INTO order_contacts (order_id, customer_id, name)
SELECT :stream_id, :data.customer_id,
       (SELECT name FROM contact_names WHERE customer_id = :data.customer_id);
