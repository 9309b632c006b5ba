-- The position up to which history must be replayed before deliveries are applied; NULL if no replay is due.
--
-- Earlier versions of `projector migrate` added columns without recording a migration, so each ALTER first checks
-- whether its column exists.
SET @projector_ddl = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = '{projection}__checkpoint' AND column_name = 'replay_until'),
    'DO 0',
    'ALTER TABLE {projection}__checkpoint ADD COLUMN replay_until BIGINT UNSIGNED NULL'
);
PREPARE projector_ddl FROM @projector_ddl;
EXECUTE projector_ddl;
DEALLOCATE PREPARE projector_ddl;
