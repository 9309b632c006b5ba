-- All streams change these few rows, with several statements in any order.
CREATE TABLE shared_counts (
    bucket INT NOT NULL PRIMARY KEY,
    events INT NOT NULL DEFAULT 0,
    total  DECIMAL(20, 2) NOT NULL DEFAULT 0
);
CREATE TABLE shared_totals (
    bucket INT NOT NULL PRIMARY KEY,
    events INT NOT NULL
);
