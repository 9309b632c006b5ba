CREATE TABLE group_workload (
    owner_group VARCHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    accepted    INT NOT NULL DEFAULT 0,
    queued      INT NOT NULL DEFAULT 0,
    completed   INT NOT NULL DEFAULT 0,
    unmatched   INT NOT NULL DEFAULT 0
);
