INSERT INTO group_workload (owner_group, unmatched)
VALUES (COALESCE(:data.group, '(none)'), 1)
ON DUPLICATE KEY UPDATE unmatched = unmatched + 1;
