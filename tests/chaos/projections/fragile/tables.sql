-- Some events have an amount that does not fit. They park their streams.
CREATE TABLE fragile (
    stream_id    VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    applied      BIGINT        NOT NULL,
    last_version BIGINT        NOT NULL,
    amount       DECIMAL(5, 2) NOT NULL
);
