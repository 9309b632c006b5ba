INSERT INTO daily_revenue (day, currency, refunds, refunded)
VALUES (DATE(:occurred_at), :data.currency, 1, :data.amount)
ON DUPLICATE KEY UPDATE refunds = refunds + 1, refunded = refunded + :data.amount;
