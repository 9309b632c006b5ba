-- A running hash over what was applied of each stream: no other order and no other events give the same.
CREATE TABLE chain (
    stream_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    applied   BIGINT   NOT NULL,
    hash      CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL
);
