-- What other roles can do to the event store and to the relay.

-- A trigger function with its owner's rights is run by whoever may create a trigger with it, on any table.
-- A role without a right on `outbox` could insert into it that way. Firing a trigger needs no right.
REVOKE EXECUTE ON FUNCTION capture_events(), wake_relay(), refuse_change_of_events(),
                           refuse_settled_outbox_row() FROM PUBLIC;

-- A position that a role chose itself (OVERRIDING SYSTEM VALUE) stopped the relay for all streams. The limit
-- is far below the largest number, so that what is computed with positions stays a number. Earlier rows are
-- not checked, so that the lock is held for a moment only.
ALTER TABLE events ADD CONSTRAINT events_position_valid
    CHECK (position BETWEEN 1 AND 4611686018427387904) NOT VALID;

-- The same for new rows of the outbox. A constraint would also refuse the UPDATE that sets an earlier
-- malformed row aside.
CREATE OR REPLACE FUNCTION refuse_settled_outbox_row() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.held OR NEW.processed_at IS NOT NULL THEN
        RAISE EXCEPTION 'outbox.held and outbox.processed_at are the relay''s: leave them out'
            USING ERRCODE = 'ES009';
    END IF;
    RAISE EXCEPTION 'outbox.id, position and stream_version are at least 1 and at most 2^62'
        USING ERRCODE = 'ES009', HINT = 'Leave out id and position.';
END $$;
CREATE OR REPLACE TRIGGER outbox_new_rows_are_pending BEFORE INSERT ON outbox
    FOR EACH ROW WHEN (
        NEW.held OR NEW.processed_at IS NOT NULL
        OR NEW.id NOT BETWEEN 1 AND 4611686018427387904
        OR NEW.position NOT BETWEEN 1 AND 4611686018427387904
        OR NEW.stream_version > 4611686018427387904)
    EXECUTE FUNCTION refuse_settled_outbox_row();

-- A stream waits because a row of it is not a valid event.
ALTER TABLE outbox_holds
    DROP CONSTRAINT outbox_holds_reason_valid,
    ADD CONSTRAINT outbox_holds_reason_valid CHECK (
        reason IN ('unroutable', 'nacked', 'too_large', 'refused', 'delayed', 'malformed'));
