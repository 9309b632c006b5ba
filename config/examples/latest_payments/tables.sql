CREATE TABLE latest_payments (
    customer_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    position    BIGINT NOT NULL,
    amount      DECIMAL(12, 2) NOT NULL,
    PRIMARY KEY (customer_id, position)
);
