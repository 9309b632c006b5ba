INSERT INTO shared_totals (bucket, events) VALUES (:data.bucket, 1)
ON DUPLICATE KEY UPDATE events = events + 1;

UPDATE shared_counts SET events = events + 1, total = total - :data.n WHERE bucket = :data.other;
