-- The landmark: the last event at or before the checkpoint when it was moved. If the event store no longer has this
-- event at this position, it has lost or replaced what was applied.
--
-- The run of the PostgreSQL server is the one in which the applied events were last found in the event store; NULL:
-- never.
SET @projector_ddl = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = '{projection}__checkpoint' AND column_name = 'landmark_position'),
    'DO 0',
    'ALTER TABLE {projection}__checkpoint
         ADD COLUMN landmark_position BIGINT UNSIGNED NULL,
         ADD COLUMN landmark_id       BINARY(16) NULL,
         ADD COLUMN server_run        BINARY(16) NULL'
);
PREPARE projector_ddl FROM @projector_ddl;
EXECUTE projector_ddl;
DEALLOCATE PREPARE projector_ddl;

-- The position of the event with `version`; NULL if an earlier release applied it.
SET @projector_ddl = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = '{projection}__streams' AND column_name = 'position'),
    'DO 0',
    'ALTER TABLE {projection}__streams ADD COLUMN position BIGINT UNSIGNED NULL'
);
PREPARE projector_ddl FROM @projector_ddl;
EXECUTE projector_ddl;
DEALLOCATE PREPARE projector_ddl;
