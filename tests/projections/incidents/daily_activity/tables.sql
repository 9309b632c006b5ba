CREATE TABLE daily_activity (
    day        DATE NOT NULL,
    event_type VARCHAR(127) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    events     INT NOT NULL,
    PRIMARY KEY (day, event_type)
);
