-- All streams feed these rows.
CREATE TABLE counter (
    bucket VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    events BIGINT         NOT NULL,
    total  DECIMAL(30, 2) NOT NULL
);
