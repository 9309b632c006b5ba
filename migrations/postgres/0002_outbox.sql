-- The outbox: what still has to be published, and what has been.
--
-- Rows come from the capture trigger on events, or straight from an application without an event
-- store (a plain integration event). The relay alone changes them.

CREATE TABLE outbox (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id       uuid        NOT NULL,
    stream_id      text        COLLATE "C",
    stream_version bigint,
    position       bigint,
    event_type     text        COLLATE "C" NOT NULL,
    schema_version integer     NOT NULL DEFAULT 1,
    routing_key    text        COLLATE "C" NOT NULL,
    payload        jsonb       NOT NULL,
    metadata       jsonb       NOT NULL DEFAULT '{}',
    occurred_at    timestamptz NOT NULL DEFAULT now(),
    created_at     timestamptz NOT NULL DEFAULT now(),
    processed_at   timestamptz,
    -- Set aside because the stream waits (outbox_holds). Kept out of the pending index, so that a
    -- waiting stream with a million rows costs the others nothing.
    held           boolean     NOT NULL DEFAULT false,
    -- One lane is published by one worker at a time: that keeps a stream in order.
    lane           smallint    NOT NULL GENERATED ALWAYS AS
        ((hashtextextended(coalesce(stream_id, event_id::text) COLLATE "C", 0) & 63)::smallint)
        STORED,
    CONSTRAINT outbox_event_id_valid CHECK (event_id <> '00000000-0000-0000-0000-000000000000'),
    CONSTRAINT outbox_stream_id_valid CHECK (is_stream_id(stream_id)),
    CONSTRAINT outbox_stream_version_valid CHECK (
        stream_version IS NULL OR (stream_version >= 1 AND stream_id IS NOT NULL)),
    CONSTRAINT outbox_position_valid CHECK (position IS NULL OR stream_version IS NOT NULL),
    CONSTRAINT outbox_event_type_valid CHECK (is_event_type(event_type)),
    CONSTRAINT outbox_schema_version_valid CHECK (schema_version >= 1),
    CONSTRAINT outbox_routing_key_valid CHECK (
        routing_key ~ '^[^*#[:space:][:cntrl:]]+$' AND octet_length(routing_key) <= 255),
    CONSTRAINT outbox_metadata_valid CHECK (
        jsonb_typeof(metadata) = 'object' AND octet_length(metadata::text) <= 32768),
    CONSTRAINT outbox_times_valid CHECK (
        occurred_at >= '0001-01-01 00:00:00+00' AND occurred_at < '10000-01-01 00:00:00+00'
        AND isfinite(created_at))
);

COMMENT ON TABLE outbox IS 'Events to publish, and for a while those that have been.';

CREATE INDEX outbox_pending ON outbox (lane, id) WHERE processed_at IS NULL AND NOT held;
CREATE INDEX outbox_held ON outbox (coalesce(stream_id, event_id::text), id)
    WHERE processed_at IS NULL AND held;

-- A worker locks the rows of the lanes that it publishes.
CREATE TABLE outbox_lanes (lane smallint PRIMARY KEY CHECK (lane BETWEEN 0 AND 63));
INSERT INTO outbox_lanes SELECT generate_series(0, 63);

-- One row for each stream that waits: its first unpublished event could not be published.
-- Changed only by the worker that has locked the lane.
CREATE TABLE outbox_holds (
    stream_key text        COLLATE "C" PRIMARY KEY,
    lane       smallint    NOT NULL REFERENCES outbox_lanes,
    outbox_id  bigint      NOT NULL,
    -- Failed attempts of that event; 0 while what piled up behind it is being published.
    attempts   integer     NOT NULL CHECK (attempts >= 0),
    last_error text        NOT NULL,
    since      timestamptz NOT NULL DEFAULT now(),
    -- When to try again.
    until      timestamptz NOT NULL
);

COMMENT ON TABLE outbox_holds IS 'Streams that wait because an event could not be published.';
COMMENT ON COLUMN outbox_holds.stream_key IS 'The stream id, or the event id where there is none.';

CREATE INDEX outbox_holds_due ON outbox_holds (lane, until);

-- Copies each INSERT into the outbox, in the same transaction, so that no writer can forget it.
--
-- It also refuses an INSERT that would leave a hole: every version needs its predecessor, earlier
-- in the same statement or already visible, at a lower position. Otherwise version 2 could be
-- committed and published while version 1 is still open, and stay alone if that rolls back.
-- append_to_stream() never fails here; a raw INSERT can.
CREATE FUNCTION capture_events() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    hole text;
BEGIN
    SELECT run.stream_id INTO hole
    FROM (
        SELECT numbered.stream_id, min(numbered.base) AS base, max(numbered.base) AS highest_base,
               min(numbered.position) AS position
        FROM (
            SELECT i.stream_id, i.position, i.stream_version
                   - row_number() OVER (PARTITION BY i.stream_id ORDER BY i.position) AS base
            FROM inserted i
        ) AS numbered
        GROUP BY numbered.stream_id
    ) AS run
    WHERE run.base <> run.highest_base
       OR (run.base > 0 AND NOT EXISTS (
            SELECT 1 FROM events e
            WHERE e.stream_id = run.stream_id AND e.stream_version = run.base
              AND e.position < run.position))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'stream "%": a version must follow its predecessor, without a hole', hole
            USING ERRCODE = '40001', HINT = 'Append with append_to_stream().';
    END IF;

    INSERT INTO outbox (event_id, stream_id, stream_version, position, event_type, schema_version,
                        routing_key, payload, metadata, occurred_at, created_at)
    SELECT i.event_id, i.stream_id, i.stream_version, i.position, i.event_type, i.schema_version,
           split_part(i.stream_id, '-', 1) || '.' || i.event_type, i.data, i.metadata,
           i.occurred_at, i.recorded_at
    FROM inserted i
    ORDER BY i.position;
    RETURN NULL;
END $$;

CREATE TRIGGER events_capture AFTER INSERT ON events
    REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION capture_events();
ALTER TABLE events ENABLE ALWAYS TRIGGER events_capture;

-- A function with its owner's rights must not follow the caller's search_path.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION capture_events() SET search_path = %I, pg_temp',
                   current_schema());
END $$;
