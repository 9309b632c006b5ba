-- Distinguishes these tables from those that a rebuild puts in their place.
SET @projector_ddl = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = '{projection}__checkpoint' AND column_name = 'epoch'),
    'DO 0',
    'ALTER TABLE {projection}__checkpoint ADD COLUMN epoch BINARY(16) NOT NULL DEFAULT (UUID_TO_BIN(UUID()))'
);
PREPARE projector_ddl FROM @projector_ddl;
EXECUTE projector_ddl;
DEALLOCATE PREPARE projector_ddl;
