UPDATE customer_value SET paid = paid + :data.amount WHERE customer_id = :data.customer_id;
