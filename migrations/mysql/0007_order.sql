-- The order of events that a definition asks for: 'stream' or 'global'; NULL if its tables decide.
ALTER TABLE projector_definitions ADD COLUMN event_order VARCHAR(6) CHARACTER SET ascii NULL;
