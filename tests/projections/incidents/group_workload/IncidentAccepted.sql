INSERT INTO group_workload (owner_group, accepted)
VALUES (COALESCE(:data.group, '(none)'), 1)
ON DUPLICATE KEY UPDATE accepted = accepted + 1;
