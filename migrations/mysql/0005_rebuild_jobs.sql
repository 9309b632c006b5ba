-- A rebuild is a job: any projector with the same files goes on with one that was interrupted.
ALTER TABLE projector_rebuilds
    -- As it was asked for: events a second at most, 0 for no limit; the lag in seconds of the live read
    -- model from which on it waits; whether streams may stay parked.
    ADD COLUMN throttle          INT UNSIGNED NOT NULL DEFAULT 0,
    ADD COLUMN max_lag           INT UNSIGNED NOT NULL DEFAULT 0,
    ADD COLUMN allow_parked      BOOLEAN NOT NULL DEFAULT FALSE,
    -- Where it runs, and how far it is.
    ADD COLUMN host              VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL DEFAULT '',
    ADD COLUMN position          BIGINT UNSIGNED NOT NULL DEFAULT 0,
    ADD COLUMN until_position    BIGINT UNSIGNED NOT NULL DEFAULT 0,
    ADD COLUMN events            BIGINT UNSIGNED NOT NULL DEFAULT 0,
    ADD COLUMN events_per_second BIGINT UNSIGNED NOT NULL DEFAULT 0,
    ADD COLUMN seconds_left      BIGINT UNSIGNED NULL,
    -- Why it failed.
    ADD COLUMN reason            VARCHAR(2000) CHARACTER SET utf8mb4 NULL;

-- From before the tables are swapped until that is noted: batches look at which tables they meet.
ALTER TABLE projector_projections ADD COLUMN swapping BOOLEAN NOT NULL DEFAULT FALSE;
