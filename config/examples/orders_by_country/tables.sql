CREATE TABLE orders_by_country (
    country CHAR(2) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    orders  INT NOT NULL
);
