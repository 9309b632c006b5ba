CREATE TABLE incident_summary (
    incident_id   VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    status        VARCHAR(40) NULL,
    impact        VARCHAR(20) NULL,
    product       VARCHAR(40) NULL,
    owner_group   VARCHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NULL,
    opened_at     DATETIME(6) NOT NULL,
    last_event_at DATETIME(6) NOT NULL,
    completed_at  DATETIME(6) NULL,
    handovers     INT NOT NULL DEFAULT 0,
    events        INT NOT NULL DEFAULT 1
);
