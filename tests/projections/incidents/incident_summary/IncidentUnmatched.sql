INSERT INTO incident_summary
    (incident_id, status, impact, product, owner_group, opened_at, last_event_at)
VALUES
    (:stream_id, :data.status, :data.impact, :data.product, :data.group, :occurred_at, :occurred_at)
AS latest
ON DUPLICATE KEY UPDATE
    -- This precedes owner_group, because an assignment sees the assignments to its left.
    handovers = handovers + (NOT incident_summary.owner_group <=> latest.owner_group),
    status = latest.status,
    impact = latest.impact,
    product = latest.product,
    owner_group = latest.owner_group,
    last_event_at = latest.last_event_at,
    events = events + 1;
