-- The definition of a projection: its files, by their hash. `projector_projections.definition_hash` is the
-- definition in service: only projectors with these files apply events.
CREATE TABLE projector_definitions (
    projection VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    hash       CHAR(64)    CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    -- A JSON object with the text of each file. It is not JSON, which would limit its size and forget the
    -- order of its keys.
    files      LONGTEXT    CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    -- An event was refused whose value MySQL would change to fit a column.
    strict     BOOLEAN     NOT NULL,
    -- A Rust type applied the events, so the files do not hold the handlers.
    in_rust    BOOLEAN     NOT NULL,
    -- When it was last put into service.
    served_at  DATETIME(6) NOT NULL,
    PRIMARY KEY (projection, hash)
);

-- The definition that was in service when a rebuild took the previous tables out of service, and the epoch of
-- these tables: a rebuild by the previous version leaves the hash as it is, and other tables.
ALTER TABLE projector_projections
    ADD COLUMN previous_hash  CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN previous_epoch BINARY(16) NULL;

-- The events that a person has left out. A rebuild does not swap this table, and leaves them out too.
CREATE TABLE projector_skips (
    projection VARCHAR(48)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    stream_id  VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    version    BIGINT UNSIGNED NOT NULL,
    -- Another event with this version is not left out.
    event_id   BINARY(16) NOT NULL,
    reason     TEXT CHARACTER SET utf8mb4 NOT NULL,
    login      VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL,
    skipped_at DATETIME(6) NOT NULL,
    PRIMARY KEY (projection, stream_id, version)
);

-- Decisions from before this table existed.
REPLACE INTO projector_skips (projection, stream_id, version, event_id, reason, login, skipped_at)
SELECT projection, stream_id, version, event_id, reason, login, decided_at
FROM projector_audit
WHERE action IN ('skip', 'discard') AND stream_id IS NOT NULL AND version IS NOT NULL AND event_id IS NOT NULL
ORDER BY id;
