INSERT INTO latest_payments (customer_id, position, amount)
VALUES (:data.customer_id, :position, :data.amount);

DELETE FROM latest_payments
WHERE customer_id = :data.customer_id
  AND position < (SELECT position
                  FROM (SELECT position FROM latest_payments
                        WHERE customer_id = :data.customer_id
                        ORDER BY position DESC LIMIT 1 OFFSET 9) AS tenth);
