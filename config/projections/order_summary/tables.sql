-- One row for each order. Keys compare byte by byte, so that no two streams share a row.
CREATE TABLE order_summary (
    order_id      VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    customer_id   VARCHAR(64)    NOT NULL,
    customer_name VARCHAR(200)   NOT NULL,
    status        VARCHAR(20)    NOT NULL,
    currency      CHAR(3)        NOT NULL,
    total         DECIMAL(12, 2) NOT NULL,
    paid          DECIMAL(12, 2) NOT NULL DEFAULT 0,
    refunded      DECIMAL(12, 2) NOT NULL DEFAULT 0,
    parcels       INT            NOT NULL DEFAULT 0,
    placed_at     DATETIME(6)    NOT NULL,
    updated_at    DATETIME(6)    NOT NULL,
    INDEX by_customer (customer_id, placed_at)
);
