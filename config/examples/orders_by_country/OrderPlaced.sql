INSERT INTO orders_by_country (country, orders) VALUES (:data.customer.country, 1)
ON DUPLICATE KEY UPDATE orders = orders + 1;
