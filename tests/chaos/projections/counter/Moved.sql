INSERT INTO counter (bucket, events, total) VALUES (:data.bucket, 1, :data.amount)
ON DUPLICATE KEY UPDATE events = events + 1, total = total + :data.amount;
