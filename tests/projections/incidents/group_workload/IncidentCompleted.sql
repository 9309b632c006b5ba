INSERT INTO group_workload (owner_group, completed)
VALUES (COALESCE(:data.group, '(none)'), 1)
ON DUPLICATE KEY UPDATE completed = completed + 1;
