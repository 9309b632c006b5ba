-- The applied events of each stream, which show whether effects were lost, doubled, inverted or skipped.
CREATE TABLE ledger_streams (
    stream_id    VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin PRIMARY KEY,
    applied      BIGINT         NOT NULL,
    last_version BIGINT         NOT NULL,
    -- How often a version did not follow its predecessor.
    breaks       BIGINT         NOT NULL,
    total        DECIMAL(30, 2) NOT NULL
);

CREATE TABLE ledger_versions (
    stream_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    version   BIGINT   NOT NULL,
    event_id  CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    times     BIGINT   NOT NULL,
    PRIMARY KEY (stream_id, version)
);
