-- Each row combines two streams, whichever comes first.
CREATE TABLE contact_names (
    customer_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    name        VARCHAR(200) NOT NULL
);

CREATE TABLE order_contacts (
    order_id    VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    customer_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    name        VARCHAR(200) NULL,
    INDEX by_customer (customer_id)
);
