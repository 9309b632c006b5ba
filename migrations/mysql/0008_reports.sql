-- What each projector says of itself, also while it follows no queue. `projector status` shows it. It is not in
-- projector_instances, because projectors of the previous version count each of its rows as a follower.
CREATE TABLE projector_reports (
    instance    CHAR(36)     CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    host        VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL,
    -- A JSON array of the projections that it runs, with what each queue has brought.
    projections MEDIUMTEXT   CHARACTER SET utf8mb4 NOT NULL,
    -- A JSON array of the components that do not work, as /readyz shows them.
    failing     MEDIUMTEXT   CHARACTER SET utf8mb4 NOT NULL,
    seen_at     DATETIME(6)  NOT NULL
);
