CREATE TABLE account_balance (
    account_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    balance    DECIMAL(16, 2) NOT NULL DEFAULT 0,
    postings   INT NOT NULL DEFAULT 0
);
