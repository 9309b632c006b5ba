UPDATE customer_value SET cancelled = cancelled + 1 WHERE customer_id = :data.customer_id;
