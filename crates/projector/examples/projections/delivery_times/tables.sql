-- How long each order took from its first payment to its first shipment.
CREATE TABLE delivery_times (
    order_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    paid_at  DATETIME(6) NOT NULL,
    seconds  BIGINT NULL
);
