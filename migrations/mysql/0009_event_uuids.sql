-- Event ids that a person can read, search for, and paste into a command.
ALTER TABLE projector_audit
    ADD COLUMN event_uuid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin
        GENERATED ALWAYS AS (BIN_TO_UUID(event_id)) VIRTUAL;
ALTER TABLE projector_skips
    ADD COLUMN event_uuid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin
        GENERATED ALWAYS AS (BIN_TO_UUID(event_id)) VIRTUAL;
