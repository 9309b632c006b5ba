CREATE TABLE open_carts (
    cart_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    items   INT NOT NULL
);
