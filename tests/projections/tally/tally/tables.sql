-- What was applied of each stream, in order, so that a test sees what was lost, doubled or inverted.
CREATE TABLE tally (
    stream_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    applied   INT            NOT NULL,
    total     DECIMAL(20, 2) NOT NULL,
    versions  MEDIUMTEXT     NOT NULL
);

-- Fed by all streams.
CREATE TABLE tally_total (
    id      INT PRIMARY KEY,
    applied INT NOT NULL
);
