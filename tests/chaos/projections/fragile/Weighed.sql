INSERT INTO fragile (stream_id, applied, last_version, amount)
VALUES (:stream_id, 1, :stream_version, :data.amount)
ON DUPLICATE KEY UPDATE applied = applied + 1, last_version = :stream_version, amount = :data.amount;
