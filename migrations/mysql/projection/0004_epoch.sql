-- Identifies these tables: tables that a rebuild puts in their place have another epoch.
--
-- MySQL refuses to add a column whose default can differ on a replica (error 1674). The column therefore starts with
-- a constant default, the existing row gets its epoch, and then the default changes.
SET @projector_ddl = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = '{projection}__checkpoint' AND column_name = 'epoch'),
    'DO 0',
    'ALTER TABLE {projection}__checkpoint ADD COLUMN epoch BINARY(16) NOT NULL DEFAULT (UNHEX(REPEAT(''0'', 32)))'
);
PREPARE projector_ddl FROM @projector_ddl;
EXECUTE projector_ddl;
DEALLOCATE PREPARE projector_ddl;
UPDATE {projection}__checkpoint SET epoch = UUID_TO_BIN(UUID()) WHERE epoch = UNHEX(REPEAT('0', 32));
ALTER TABLE {projection}__checkpoint ALTER COLUMN epoch SET DEFAULT (UUID_TO_BIN(UUID()));
