-- The applied events.
CREATE TABLE seen (
    number    BIGINT PRIMARY KEY,
    stream_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL
);
