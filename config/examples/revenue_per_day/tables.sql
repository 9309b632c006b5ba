CREATE TABLE revenue_per_day (
    day      DATE NOT NULL,
    currency CHAR(3) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    paid     DECIMAL(16, 2) NOT NULL,
    PRIMARY KEY (day, currency)
);
