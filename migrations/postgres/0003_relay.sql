-- What the relay needs to be left alone: delayed events, blocked streams, an audit of what people
-- did, a hint for idle relays, and vacuum settings.

-- A delayed event is out of the index of pending rows until it is due.
ALTER TABLE outbox ADD COLUMN available_at timestamptz
    CONSTRAINT outbox_available_at_valid CHECK (
        available_at >= '0001-01-01 00:00:00+00' AND available_at < '10000-01-01 00:00:00+00');
COMMENT ON COLUMN outbox.available_at IS
    'Not to be published earlier; later events of its stream wait for it. NULL: at once.';

-- When the event was recorded, if the row was made later: by publishing it again.
ALTER TABLE outbox ADD COLUMN recorded_at timestamptz
    CONSTRAINT outbox_recorded_at_valid CHECK (
        recorded_at >= '0001-01-01 00:00:00+00' AND recorded_at < '10000-01-01 00:00:00+00');
ALTER TABLE outbox ADD CONSTRAINT outbox_created_at_valid CHECK (
    created_at >= '0001-01-01 00:00:00+00' AND created_at < '10000-01-01 00:00:00+00');

DROP INDEX outbox_pending;
CREATE INDEX outbox_pending ON outbox (lane, id)
    WHERE processed_at IS NULL AND NOT held AND available_at IS NULL;
CREATE UNIQUE INDEX outbox_holds_outbox_id ON outbox_holds (outbox_id);
CREATE INDEX outbox_delayed ON outbox (lane, available_at)
    WHERE processed_at IS NULL AND available_at IS NOT NULL;
CREATE INDEX outbox_delayed_streams ON outbox (stream_id, id)
    WHERE processed_at IS NULL AND available_at IS NOT NULL AND stream_id IS NOT NULL;

-- Only the relay may say that a row needs no publishing.
CREATE FUNCTION refuse_settled_outbox_row() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'outbox.held and outbox.processed_at are the relay''s: leave them out'
        USING ERRCODE = 'ES009';
END $$;
CREATE TRIGGER outbox_new_rows_are_pending BEFORE INSERT ON outbox
    FOR EACH ROW WHEN (NEW.held OR NEW.processed_at IS NOT NULL)
    EXECUTE FUNCTION refuse_settled_outbox_row();

ALTER TABLE outbox_holds
    ADD COLUMN reason text NOT NULL DEFAULT 'nacked'
        CONSTRAINT outbox_holds_reason_valid
        CHECK (reason IN ('unroutable', 'nacked', 'too_large', 'refused', 'delayed')),
    -- A blocked stream waits until somebody retries or skips its event.
    ADD COLUMN blocked boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT outbox_holds_blocked_valid CHECK (blocked = (until = 'infinity'));

-- Who did what by command, and why.
CREATE TABLE outbox_audit (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT now(),
    -- The person, as far as the command knows, and the role that it logged in with.
    actor      text        NOT NULL,
    role       text        NOT NULL DEFAULT session_user,
    action     text        NOT NULL CHECK (action IN ('retry', 'skip', 'republish')),
    outbox_id  bigint,
    event_id   uuid,
    stream_id  text,
    event_type text,
    reason     text
);
COMMENT ON TABLE outbox_audit IS 'Commands that changed what is published.';

-- Whether the transaction that locked a row last was rolled back, given the row's xmax. An xid has lost
-- its upper half: it is the one nearest to the present.
CREATE FUNCTION was_rolled_back(locker xid) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT locker::text <> '0' AND pg_xact_status((
        CASE WHEN near.locker - near.present > 1::bigint << 31
             THEN near.locker - (1::bigint << 32) ELSE near.locker END)::text::xid8) = 'aborted'
    FROM (SELECT present, (present >> 32 << 32) + locker::text::bigint AS locker
          FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS present) AS now
         ) AS near
$$;

-- 1 while a relay sleeps and asks to be woken, otherwise 0. A sequence, because it is read and set
-- outside of transactions: a writer that finds 1 sets 0 and notifies, and the next writers, until a
-- relay sleeps again, spend nothing on it. A NOTIFY in every commit would halve the commits of 16
-- writers.
CREATE SEQUENCE outbox_sleeper MINVALUE 0 MAXVALUE 1 START 0;

CREATE FUNCTION wake_relay() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF (SELECT last_value FROM outbox_sleeper) = 1 THEN
        PERFORM setval('outbox_sleeper', 0);
        NOTIFY outbox;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER outbox_wake_relay AFTER INSERT ON outbox
    FOR EACH STATEMENT EXECUTE FUNCTION wake_relay();

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION wake_relay() SET search_path = %I, pg_temp', current_schema());
END $$;

-- No row with a lower id is pending: claims need not look there. Kept by the relays.
CREATE SEQUENCE outbox_floor MINVALUE 0 START 0;

-- By default a table is vacuumed when a fifth of it is dead, which for an outbox that keeps a day of
-- processed rows is far too late for the index of pending rows.
ALTER TABLE outbox SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000,
    autovacuum_vacuum_cost_delay = 0);
ALTER TABLE outbox_holds SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_cost_delay = 0);
