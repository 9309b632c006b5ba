INSERT INTO tally (stream_id, applied, total, versions)
VALUES (:stream_id, 1, :data.n, :stream_version)
ON DUPLICATE KEY UPDATE
    applied = applied + 1,
    total = total + :data.n,
    versions = CONCAT(versions, ',', :stream_version);

INSERT INTO tally_total (id, applied) VALUES (1, 1) ON DUPLICATE KEY UPDATE applied = applied + 1;
