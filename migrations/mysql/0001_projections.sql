-- What the projector knows of its projections. The tables of a projection, and its bookkeeping, are
-- made by `projector migrate` from the projection's own directory.

CREATE TABLE projector_projections (
    name        VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    -- SHA-256 of tables.sql when the tables were made.
    tables_hash CHAR(64)    CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    created_at  DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6))
);
