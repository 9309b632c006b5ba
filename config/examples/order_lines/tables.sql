CREATE TABLE order_lines (
    order_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    line     INT NOT NULL,
    sku      VARCHAR(40) NOT NULL,
    quantity INT NOT NULL,
    PRIMARY KEY (order_id, line)
);
