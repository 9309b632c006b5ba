-- The event store: one append-only table and the one function that appends to it.

CREATE FUNCTION is_stream_id(text) RETURNS boolean
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    -- The category (what stands before the first '-') is a word of a routing key and of a
    -- binding, so it cannot hold a character to which AMQP gives a meaning.
    SELECT $1 COLLATE "C" ~ '^[^-.*#[:space:][:cntrl:]]+(-[^[:cntrl:]]*)?$' AND octet_length($1) <= 255
$$;

CREATE FUNCTION is_event_type(text) RETURNS boolean
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    -- A type is the rest of the routing key, and names the files of a projection.
    SELECT $1 COLLATE "C" ~ '^[^./*#[:space:][:cntrl:]][^/*#[:space:][:cntrl:]]*$'
           AND octet_length($1) <= 127
$$;

CREATE TABLE events (
    -- Global order. Handed out before commit: readers stop at the fence (ARCHITECTURE.md).
    position       bigint      GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    event_id       uuid        NOT NULL CONSTRAINT events_event_id_key UNIQUE,
    stream_id      text        COLLATE "C" NOT NULL,
    stream_version bigint      NOT NULL,
    event_type     text        COLLATE "C" NOT NULL,
    schema_version integer     NOT NULL DEFAULT 1,
    data           jsonb       NOT NULL,
    metadata       jsonb       NOT NULL DEFAULT '{}',
    occurred_at    timestamptz NOT NULL DEFAULT now(),
    recorded_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT events_event_id_valid CHECK (event_id <> '00000000-0000-0000-0000-000000000000'),
    CONSTRAINT events_stream_key UNIQUE (stream_id, stream_version),
    CONSTRAINT events_stream_id_valid CHECK (is_stream_id(stream_id)),
    CONSTRAINT events_stream_version_valid CHECK (stream_version >= 1),
    CONSTRAINT events_event_type_valid CHECK (
        is_event_type(event_type)
        AND octet_length(split_part(stream_id, '-', 1)) + 1 + octet_length(event_type) <= 255),
    CONSTRAINT events_schema_version_valid CHECK (schema_version >= 1),
    CONSTRAINT events_data_is_object CHECK (jsonb_typeof(data) = 'object'),
    -- Metadata travels in the header frame of a message, which cannot be split.
    CONSTRAINT events_metadata_valid CHECK (
        jsonb_typeof(metadata) = 'object' AND octet_length(metadata::text) <= 32768),
    CONSTRAINT events_times_valid CHECK (
        occurred_at >= '0001-01-01 00:00:00+00' AND occurred_at < '10000-01-01 00:00:00+00'
        AND isfinite(recorded_at))
);

COMMENT ON TABLE events IS 'Event store, append-only. Append with append_to_stream().';

CREATE FUNCTION refuse_change_of_events() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events is append-only: % is refused', TG_OP
        USING ERRCODE = 'ES008', HINT = 'Append a new event that corrects the old one.';
END $$;

CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_events();
ALTER TABLE events ENABLE ALWAYS TRIGGER events_append_only;

-- Why the first malformed element of an append is refused; no row when all are well formed.
CREATE FUNCTION append_fault(stream_id text, events jsonb)
RETURNS TABLE (ordinal bigint, code text, reason text)
LANGUAGE sql STABLE AS $$
    SELECT checked.ordinal, left(checked.fault, 5), substr(checked.fault, 7)
    FROM (
        SELECT element.ordinal, CASE
            WHEN jsonb_typeof(item) <> 'object'
                THEN 'ES007 not a JSON object'
            WHEN item->>'event_id' IS NULL
                THEN 'ES003 event_id is missing'
            WHEN item->>'event_id' !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                THEN 'ES003 event_id is not a UUID'
            WHEN item->>'event_id' = '00000000-0000-0000-0000-000000000000'
                THEN 'ES003 event_id is the nil UUID'
            WHEN count(*) OVER (PARTITION BY lower(item->>'event_id')) > 1
                THEN 'ES003 event_id appears twice in the call'
            WHEN jsonb_typeof(item->'type') IS DISTINCT FROM 'string'
                THEN 'ES004 type is missing or not a string'
            WHEN NOT is_event_type(item->>'type')
                THEN 'ES004 type is malformed: 1 to 127 bytes without space, "/", "*" or "#",'
                     ' not starting with "."'
            WHEN octet_length(split_part(stream_id, '-', 1)) + 1 + octet_length(item->>'type') > 255
                THEN 'ES004 type and category are together longer than 254 bytes'
            WHEN jsonb_typeof(item->'data') IS DISTINCT FROM 'object'
                THEN 'ES005 data is missing or not a JSON object'
            WHEN EXISTS (
                SELECT FROM jsonb_object_keys(item) AS field
                WHERE field NOT IN ('event_id', 'type', 'data', 'metadata', 'occurred_at',
                                    'schema_version'))
                THEN 'ES007 it has a field other than event_id, type, data, metadata, occurred_at'
                     ' and schema_version'
            WHEN jsonb_typeof(item->'metadata') NOT IN ('object', 'null')
                THEN 'ES007 metadata is not a JSON object'
            WHEN octet_length((item->'metadata')::text) > 32768
                THEN 'ES007 metadata is longer than 32768 bytes'
            WHEN jsonb_typeof(item->'schema_version') <> 'null'
                 AND item->>'schema_version' !~ '^[1-9][0-9]{0,8}$'
                THEN 'ES007 schema_version is not a positive integer'
            WHEN jsonb_typeof(item->'occurred_at') <> 'null'
                 AND item->>'occurred_at' !~
                     '^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d(:?\d\d)?)$'
                THEN 'ES007 occurred_at is not a timestamp with time zone'
                     ' such as 2026-01-31T09:30:00.000Z'
            END AS fault
        FROM jsonb_array_elements(events) WITH ORDINALITY AS element(item, ordinal)
    ) AS checked
    WHERE checked.fault IS NOT NULL
    ORDER BY checked.ordinal
    LIMIT 1
$$;

-- Appends events to one stream, in the caller's transaction, and returns the stream's version
-- after the call.
--
--   stream_id         '<category>-<id>', for example 'order-1234'
--   expected_version  the version that the caller last saw; 0 for a new stream; NULL for any
--   events            a JSON array of objects:
--                       event_id        UUID, required: makes a repeated call harmless
--                       type            text, required
--                       data            object, required
--                       metadata        object, optional: correlation_id, traceparent, ...
--                       occurred_at     timestamp with time zone, optional: now
--                       schema_version  positive integer, optional: 1
--
-- Events that the stream already holds (same event_id, type and data) are not appended again, and a
-- call whose events are all there succeeds whatever version it expects.
--
-- Errors, by SQLSTATE:
--   ES001  the stream is not at the expected version
--   ES002  the stream id is empty or malformed
--   ES003  an event_id is missing, not a UUID, nil, or twice in the call
--   ES004  a type is missing or malformed
--   ES005  data is missing or not an object
--   ES006  an event_id is already used, in another stream or with another type or data
--   ES007  another argument is malformed
--   22008  occurred_at has the right form, but no such time exists
--   40001  under REPEATABLE READ or SERIALIZABLE: another transaction appended; try again
CREATE FUNCTION append_to_stream(stream_id text, expected_version bigint, events jsonb)
RETURNS bigint
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    target     CONSTANT text   := append_to_stream.stream_id;
    expected   CONSTANT bigint := append_to_stream.expected_version;
    batch      CONSTANT jsonb  := append_to_stream.events;
    fault      record;
    ids        uuid[];
    known      uuid[];
    version    bigint;
    appended   bigint;
BEGIN
    IF target IS NULL OR target = '' THEN
        RAISE EXCEPTION 'stream id is empty'
            USING ERRCODE = 'ES002', HINT = 'Use ''<category>-<id>'', for example ''order-1234''.';
    ELSIF NOT is_stream_id(target) THEN
        RAISE EXCEPTION 'stream id "%" is malformed', target
            USING ERRCODE = 'ES002', HINT = 'Use ''<category>-<id>'', at most 255 bytes, without'
                ' control characters; a category has no space, ".", "*" or "#".';
    ELSIF expected < 0 THEN
        RAISE EXCEPTION 'expected version % of stream "%" is negative', expected, target
            USING ERRCODE = 'ES007', HINT = 'Use 0 for a new stream, NULL for any version.';
    ELSIF batch IS NULL OR jsonb_typeof(batch) <> 'array' OR jsonb_array_length(batch) = 0 THEN
        RAISE EXCEPTION 'events for stream "%" is not a JSON array with at least one event', target
            USING ERRCODE = 'ES007';
    END IF;

    SELECT f.* INTO fault FROM append_fault(target, batch) f;
    IF FOUND THEN
        RAISE EXCEPTION 'event % for stream "%": %', fault.ordinal, target, fault.reason
            USING ERRCODE = fault.code;
    END IF;

    -- Appends to one stream queue up here, so that the version read next holds until commit.
    PERFORM pg_advisory_xact_lock(hashtextextended(target, 7166301));

    SELECT coalesce(max(e.stream_version), 0) INTO version
    FROM events e WHERE e.stream_id = target;

    SELECT array_agg((item->>'event_id')::uuid) INTO ids FROM jsonb_array_elements(batch) item;
    SELECT coalesce(array_agg(e.event_id), '{}') INTO known
    FROM events e WHERE e.event_id = ANY (ids) AND e.stream_id = target;

    -- Metadata and time may be those of the repetition.
    IF known <> '{}' THEN
        SELECT e.event_id, e.stream_version INTO fault
        FROM events e JOIN jsonb_array_elements(batch) item
             ON (item->>'event_id')::uuid = e.event_id
        WHERE e.event_id = ANY (known)
              AND (e.event_type <> item->>'type' OR e.data <> item->'data')
        LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'event id % is that of version % of stream "%", which has another type or'
                ' other data', fault.event_id, fault.stream_version, target
                USING ERRCODE = 'ES006', HINT = 'Give every event an id of its own.';
        END IF;
    END IF;

    IF cardinality(known) = cardinality(ids) THEN
        RETURN version;
    ELSIF version <> expected THEN
        RAISE EXCEPTION 'stream "%" is at version %, but version % was expected',
            target, version, expected
            USING ERRCODE = 'ES001', HINT = 'Load the stream again and decide anew.';
    END IF;

    SELECT e.event_id, e.stream_id INTO fault
    FROM events e WHERE e.event_id = ANY (ids) AND e.stream_id <> target LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'event id % for stream "%" is already used in stream "%"',
            fault.event_id, target, fault.stream_id
            USING ERRCODE = 'ES006', HINT = 'Give every event an id of its own.';
    END IF;

    -- The order of this SELECT is the order in which positions are handed out.
    INSERT INTO events (event_id, stream_id, stream_version, event_type, schema_version,
                        data, metadata, occurred_at)
    SELECT (item->>'event_id')::uuid, target, version + row_number() OVER (ORDER BY ordinal),
           item->>'type', coalesce((item->>'schema_version')::integer, 1),
           item->'data', coalesce(nullif(item->'metadata', 'null'), '{}'),
           coalesce((item->>'occurred_at')::timestamptz, now())
    FROM jsonb_array_elements(batch) WITH ORDINALITY AS element(item, ordinal)
    WHERE (item->>'event_id')::uuid <> ALL (known)
    ORDER BY ordinal
    ON CONFLICT DO NOTHING;

    GET DIAGNOSTICS appended = ROW_COUNT;
    IF appended = cardinality(ids) - cardinality(known) THEN
        RETURN version + appended;
    END IF;

    -- Only a raw INSERT, or an append of the same event id to another stream, can have come in between.
    RAISE EXCEPTION 'stream "%" moved on from version % during the append', target, version
        USING ERRCODE = 'ES001', HINT = 'Load the stream again and decide anew.';
END $$;

COMMENT ON FUNCTION append_to_stream(text, bigint, jsonb) IS
    'Appends events to one stream with optimistic concurrency; returns the new stream version.';

-- Pins the schema, so that the search_path of a caller cannot redirect the functions.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION append_fault(text, jsonb) SET search_path = %I, pg_temp',
                   current_schema());
    EXECUTE format('ALTER FUNCTION append_to_stream(text, bigint, jsonb)'
                   ' SET search_path = %I, pg_temp', current_schema());
END $$;
