INSERT INTO spread (stream_id, applied, versions)
VALUES (:stream_id, 1, :stream_version)
ON DUPLICATE KEY UPDATE
    applied = applied + 1,
    versions = CONCAT(versions, ',', :stream_version);
