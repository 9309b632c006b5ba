-- The epoch of the tables that hold events which the event store does not have. While these tables are in service,
-- the projection stays paused until `projector reconcile-history`.
ALTER TABLE projector_projections ADD COLUMN diverged_epoch BINARY(16) NULL;

-- Deliveries up to this position are looked up in the event store before they are applied: events that it has lost
-- may still be in a queue. NULL: none.
ALTER TABLE projector_projections ADD COLUMN compared_until BIGINT UNSIGNED NULL;
