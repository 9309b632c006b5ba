CREATE TABLE members (
    member_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    email     VARCHAR(254) NULL,
    left_at   DATETIME(6) NULL
);
