INSERT INTO customer_value (customer_id, name, country, orders)
VALUES (:data.customer.id, :data.customer.name, :data.customer.country, 1)
ON DUPLICATE KEY UPDATE orders = orders + 1;
