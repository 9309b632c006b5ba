INSERT INTO shared_counts (bucket, events, total) VALUES (:data.bucket, 1, :data.n)
ON DUPLICATE KEY UPDATE events = events + 1, total = total + :data.n;

INSERT INTO shared_totals (bucket, events) VALUES (:data.other, 1)
ON DUPLICATE KEY UPDATE events = events + 1;
