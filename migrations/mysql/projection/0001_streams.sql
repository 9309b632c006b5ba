-- The bookkeeping of one projection; {projection} stands for its name. It is in the database of the read model,
-- and changes in the transaction of the effects. A rebuild swaps it together with the tables.

-- One row for each stream: its last applied event.
CREATE TABLE IF NOT EXISTS {projection}__streams (
    stream_id        VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL PRIMARY KEY,
    -- The last applied version; 0 before the first.
    version          BIGINT UNSIGNED NOT NULL,
    -- The version before the last change. It lets an update detect that another instance was faster.
    previous_version BIGINT UNSIGNED NOT NULL,
    -- The id of the event with `version`.
    event_id         BINARY(16) NOT NULL
) ENGINE = InnoDB;

-- One row: every event up to this position of the event store is known to be applied.
CREATE TABLE IF NOT EXISTS {projection}__checkpoint (
    id       TINYINT NOT NULL PRIMARY KEY CHECK (id = 1),
    position BIGINT UNSIGNED NOT NULL
) ENGINE = InnoDB;
