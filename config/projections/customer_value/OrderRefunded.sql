UPDATE customer_value SET refunded = refunded + :data.amount WHERE customer_id = :data.customer_id;
