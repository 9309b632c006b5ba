INSERT INTO group_workload (owner_group, queued)
VALUES (COALESCE(:data.group, '(none)'), 1)
ON DUPLICATE KEY UPDATE queued = queued + 1;
