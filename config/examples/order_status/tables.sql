CREATE TABLE order_status (
    order_id   VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    status     VARCHAR(20) NOT NULL,
    changed_at DATETIME(6) NOT NULL
);
