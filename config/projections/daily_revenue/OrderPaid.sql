INSERT INTO daily_revenue (day, currency, payments, paid)
VALUES (DATE(:occurred_at), :data.currency, 1, :data.amount)
ON DUPLICATE KEY UPDATE payments = payments + 1, paid = paid + :data.amount;
