-- The gate of a projection: every batch locks its row first, so that whoever changes it knows that no
-- batch is under way.
ALTER TABLE projector_projections
    -- Why nothing is applied until somebody resumes the projection.
    ADD COLUMN paused_reason TEXT CHARACTER SET utf8mb4 NULL,
    ADD COLUMN paused_at     DATETIME(6) NULL,
    -- How many queues share the events: another number than the configured one means that old queues
    -- are still to be emptied.
    ADD COLUMN partitions    SMALLINT UNSIGNED NULL,
    -- The highest priority that was given to a consumer of a queue.
    ADD COLUMN priority      INT NOT NULL DEFAULT 0;

-- Who decided what about parked streams, and why.
CREATE TABLE projector_audit (
    id         BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    decided_at DATETIME(6)  NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    projection VARCHAR(48)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    stream_id  VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NULL,
    version    BIGINT UNSIGNED NULL,
    event_id   BINARY(16) NULL,
    action     VARCHAR(20)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    reason     TEXT CHARACTER SET utf8mb4 NOT NULL,
    -- What had stopped the stream.
    error      TEXT CHARACTER SET utf8mb4 NULL,
    login      VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL
);

-- The instances that share the queues of a projection. Only the spread of the load depends on it.
CREATE TABLE projector_instances (
    projection VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    instance   CHAR(36)    CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    host       VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL,
    -- How many partitions it shares.
    shares     SMALLINT UNSIGNED NOT NULL,
    -- The partitions that it applied events of lately, as JSON.
    partitions TEXT CHARACTER SET ascii NOT NULL,
    seen_at    DATETIME(6) NOT NULL,
    PRIMARY KEY (projection, instance)
);
