-- The bookkeeping of one projection; {projection} is its name. It lies beside the read model, moves in
-- the transaction of the effects, and is swapped together with the tables by a rebuild.

-- Where each stream stands.
CREATE TABLE IF NOT EXISTS {projection}__streams (
    stream_id        VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL PRIMARY KEY,
    -- The last version that was applied; 0 before the first.
    version          BIGINT UNSIGNED NOT NULL,
    -- The version before the last move, which guards against two movers.
    previous_version BIGINT UNSIGNED NOT NULL,
    -- The event with `version`.
    event_id         BINARY(16) NOT NULL
) ENGINE = InnoDB;

-- Up to this position of the event store, every event is known to be applied. One row.
CREATE TABLE IF NOT EXISTS {projection}__checkpoint (
    id       TINYINT NOT NULL PRIMARY KEY CHECK (id = 1),
    position BIGINT UNSIGNED NOT NULL
) ENGINE = InnoDB;
