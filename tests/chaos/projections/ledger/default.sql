INSERT INTO ledger_streams (stream_id, applied, last_version, breaks, total)
VALUES (:stream_id, 1, :stream_version, :stream_version <> 1, COALESCE(:data.amount?, 0))
ON DUPLICATE KEY UPDATE
    applied = applied + 1,
    breaks = breaks + (:stream_version <> last_version + 1),
    last_version = :stream_version,
    total = total + COALESCE(:data.amount?, 0);

INSERT INTO ledger_versions (stream_id, version, event_id, times)
VALUES (:stream_id, :stream_version, :event_id, 1)
ON DUPLICATE KEY UPDATE times = times + 1;
