-- A stream is parked if an event could not be applied. The column has a default because daemons of the previous
-- version insert rows without it.
SET @projector_ddl = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = '{projection}__streams' AND column_name = 'parked'),
    'DO 0',
    'ALTER TABLE {projection}__streams ADD COLUMN parked BOOLEAN NOT NULL DEFAULT FALSE'
);
PREPARE projector_ddl FROM @projector_ddl;
EXECUTE projector_ddl;
DEALLOCATE PREPARE projector_ddl;

-- The number of healed events: those that no delivery brought and that were read from the event store.
SET @projector_ddl = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = '{projection}__checkpoint' AND column_name = 'healed'),
    'DO 0',
    'ALTER TABLE {projection}__checkpoint ADD COLUMN healed BIGINT UNSIGNED NOT NULL DEFAULT 0'
);
PREPARE projector_ddl FROM @projector_ddl;
EXECUTE projector_ddl;
DEALLOCATE PREPARE projector_ddl;

-- One row for each parked stream: the event that could not be applied, and the reason.
CREATE TABLE IF NOT EXISTS {projection}__parked (
    stream_id        VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL PRIMARY KEY,
    version          BIGINT UNSIGNED NOT NULL,
    event_id         BINARY(16) NOT NULL,
    event_type       VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    position         BIGINT UNSIGNED NULL,
    kind             VARCHAR(20) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    -- A sentence with file and line. It never contains a value of the event.
    reason           TEXT CHARACTER SET utf8mb4 NOT NULL,
    -- In a conflict, the applied event with the same version.
    applied_event_id BINARY(16) NULL,
    attempts         INT UNSIGNED NOT NULL,
    parked_at        DATETIME(6) NOT NULL,
    INDEX by_time (parked_at)
) ENGINE = InnoDB;
