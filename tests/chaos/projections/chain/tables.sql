-- A running hash over the applied events of each stream: another order or other events give another hash.
CREATE TABLE chain (
    stream_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    applied   BIGINT   NOT NULL,
    hash      CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL
);
