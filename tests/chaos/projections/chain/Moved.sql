INSERT INTO chain (stream_id, applied, hash)
VALUES (:stream_id, 1, SHA2(CONCAT(':', :stream_version, ':', :event_id), 256))
ON DUPLICATE KEY UPDATE
    applied = applied + 1,
    hash = SHA2(CONCAT(hash, ':', :stream_version, ':', :event_id), 256);
