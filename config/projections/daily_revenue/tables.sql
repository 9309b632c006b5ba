-- One row for each day (UTC) and currency, fed by all orders.
CREATE TABLE daily_revenue (
    day      DATE           NOT NULL,
    currency CHAR(3) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    payments INT            NOT NULL DEFAULT 0,
    paid     DECIMAL(16, 2) NOT NULL DEFAULT 0,
    refunds  INT            NOT NULL DEFAULT 0,
    refunded DECIMAL(16, 2) NOT NULL DEFAULT 0,
    PRIMARY KEY (day, currency)
);
