-- A rebuild swaps the tables of a projection. Instances that see another generation look at the tables
-- again; those that have another definition than the tables were built from stop.
ALTER TABLE projector_projections
    ADD COLUMN generation      INT UNSIGNED NOT NULL DEFAULT 1,
    -- SHA-256 of all files of the projection when its read model was built from the whole history.
    ADD COLUMN definition_hash CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL;

-- The last rebuild of each projection.
CREATE TABLE projector_rebuilds (
    projection      VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    state           VARCHAR(20) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    -- From which files the new tables are built.
    definition_hash CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    started_at      DATETIME(6) NOT NULL,
    changed_at      DATETIME(6) NOT NULL
);
