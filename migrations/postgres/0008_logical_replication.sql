-- The subscriber of a logical replication receives the rows of the outbox. Captured once more from the copied
-- events, they stopped its initial copy with a duplicate key, or were published again.
--
-- The trigger no longer fires in a session with `session_replication_role = replica`. Only a superuser can
-- choose that role, or grant the right to.
ALTER TABLE events ENABLE TRIGGER events_capture;
