-- One row for each customer, fed by all of the customer's orders.
CREATE TABLE customer_value (
    customer_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    name        VARCHAR(200)   NOT NULL,
    country     CHAR(2)        NOT NULL,
    orders      INT            NOT NULL DEFAULT 0,
    cancelled   INT            NOT NULL DEFAULT 0,
    paid        DECIMAL(14, 2) NOT NULL DEFAULT 0,
    refunded    DECIMAL(14, 2) NOT NULL DEFAULT 0
);
