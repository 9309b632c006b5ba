CREATE TABLE product_search (
    product_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    title      VARCHAR(200) NOT NULL,
    body       TEXT NULL,
    document   JSON NOT NULL,
    FULLTEXT INDEX words (title, body)
);
