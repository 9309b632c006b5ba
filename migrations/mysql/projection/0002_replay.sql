-- Up to which position history must be replayed before the queue is followed; NULL when that is done.
-- Earlier versions of `projector migrate` made the column without recording it, so each ALTER looks first.
SET @projector_ddl = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = '{projection}__checkpoint' AND column_name = 'replay_until'),
    'DO 0',
    'ALTER TABLE {projection}__checkpoint ADD COLUMN replay_until BIGINT UNSIGNED NULL'
);
PREPARE projector_ddl FROM @projector_ddl;
EXECUTE projector_ddl;
DEALLOCATE PREPARE projector_ddl;
