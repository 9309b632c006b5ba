INSERT INTO revenue_per_day (day, currency, paid)
VALUES (DATE(:occurred_at), :data.currency, :data.amount)
ON DUPLICATE KEY UPDATE paid = paid + :data.amount;
