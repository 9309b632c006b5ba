-- A stream that cannot go on is parked. Daemons of the version before insert rows without the flag.
SET @projector_ddl = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = '{projection}__streams' AND column_name = 'parked'),
    'DO 0',
    'ALTER TABLE {projection}__streams ADD COLUMN parked BOOLEAN NOT NULL DEFAULT FALSE'
);
PREPARE projector_ddl FROM @projector_ddl;
EXECUTE projector_ddl;
DEALLOCATE PREPARE projector_ddl;

-- How many events were lost on the way and read from the event store.
SET @projector_ddl = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = '{projection}__checkpoint' AND column_name = 'healed'),
    'DO 0',
    'ALTER TABLE {projection}__checkpoint ADD COLUMN healed BIGINT UNSIGNED NOT NULL DEFAULT 0'
);
PREPARE projector_ddl FROM @projector_ddl;
EXECUTE projector_ddl;
DEALLOCATE PREPARE projector_ddl;

-- Which event stopped a stream, and why.
CREATE TABLE IF NOT EXISTS {projection}__parked (
    stream_id        VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL PRIMARY KEY,
    version          BIGINT UNSIGNED NOT NULL,
    event_id         BINARY(16) NOT NULL,
    event_type       VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    position         BIGINT UNSIGNED NULL,
    kind             VARCHAR(20) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    -- With file and line; never a value of the event.
    reason           TEXT CHARACTER SET utf8mb4 NOT NULL,
    -- In a conflict: the event with the same version that was applied.
    applied_event_id BINARY(16) NULL,
    attempts         INT UNSIGNED NOT NULL,
    parked_at        DATETIME(6) NOT NULL,
    INDEX by_time (parked_at)
) ENGINE = InnoDB;
