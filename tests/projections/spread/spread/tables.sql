-- The applied versions of each stream, in order. Every row belongs to one stream.
CREATE TABLE spread (
    stream_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    applied   INT        NOT NULL,
    versions  MEDIUMTEXT NOT NULL
);
