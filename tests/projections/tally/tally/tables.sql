-- The applied versions of each stream, in order. They show lost, doubled and inverted events.
CREATE TABLE tally (
    stream_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    applied   INT            NOT NULL,
    total     DECIMAL(20, 2) NOT NULL,
    versions  MEDIUMTEXT     NOT NULL
);

-- All streams change this table.
CREATE TABLE tally_total (
    id      INT PRIMARY KEY,
    applied INT NOT NULL
);
