-- One event for an application that does not think in streams.

-- Appends one event in the caller's transaction and returns its id, stream and version.
--
--   category        the first word of the stream id and of the routing key, for example 'mail'
--   type            what happened, for example 'MailRequested'
--   data            a JSON object
--   key             what the event is about: events with one key are applied in the order of their
--                   appends. Without a key, the event is a stream of its own
--   metadata        a JSON object: correlation_id, traceparent, ...
--   event_id        makes a repeated call harmless; without it, each call appends a new event
--   occurred_at     now by default
--   schema_version  1 by default
--
-- The stream is '<category>-<key>', or '<category>-<event_id>' without a key. The event gets the
-- stream's next version. A repeated call returns the version that the event already has.
--
-- The errors are those of append_to_stream(). A malformed category or key is ES002.
CREATE FUNCTION append_event(
    category           text,
    type               text,
    data               jsonb,
    key                text        DEFAULT NULL,
    metadata           jsonb       DEFAULT NULL,
    INOUT event_id     uuid        DEFAULT NULL,
    occurred_at        timestamptz DEFAULT NULL,
    schema_version     integer     DEFAULT NULL,
    OUT stream_id      text,
    OUT stream_version bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
    event_id := coalesce(event_id, gen_random_uuid());
    stream_id := category || '-' || coalesce(key, event_id::text);

    IF category IS NULL OR category = '' THEN
        RAISE EXCEPTION 'category is empty'
            USING ERRCODE = 'ES002', HINT = 'Use one word, for example ''mail''.';
    ELSIF NOT is_stream_id(category) OR strpos(category, '-') > 0 THEN
        RAISE EXCEPTION 'category "%" is malformed', category
            USING ERRCODE = 'ES002', HINT = 'Use one word without "-", ".", "*", "#", spaces and'
                ' control characters.';
    ELSIF key = '' THEN
        RAISE EXCEPTION 'key is empty'
            USING ERRCODE = 'ES002', HINT = 'Use NULL for an event that belongs to no other.';
    ELSIF octet_length(stream_id) > 255 THEN
        RAISE EXCEPTION 'category and % are together longer than 254 bytes',
            CASE WHEN key IS NULL THEN 'event_id' ELSE 'key' END
            USING ERRCODE = 'ES002';
    ELSIF NOT is_stream_id(stream_id) THEN
        RAISE EXCEPTION 'key "%" is malformed', key
            USING ERRCODE = 'ES002', HINT = 'Use a key without control characters.';
    -- As text, the time would lose its era or have a fifth digit in its year.
    ELSIF occurred_at < '0001-01-01 00:00:00+00' OR occurred_at >= '10000-01-01 00:00:00+00' THEN
        RAISE EXCEPTION 'occurred_at % is not within the years 1 to 9999', occurred_at
            USING ERRCODE = 'check_violation';
    END IF;

    PERFORM append_to_stream(stream_id, NULL, jsonb_build_array(jsonb_build_object(
        'event_id', event_id,
        'type', type,
        'data', data,
        'metadata', metadata,
        -- In UTC, because an old time can have a zone with seconds, which append_to_stream() refuses.
        'occurred_at', to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'schema_version', schema_version)));

    -- The stream may have gone on since the first of several calls.
    SELECT e.stream_version INTO STRICT stream_version FROM events e WHERE e.event_id = event_id;
END $$;

COMMENT ON FUNCTION append_event(text, text, jsonb, text, jsonb, uuid, timestamptz, integer) IS
    'Appends one event to the stream of its key, or to a stream of its own; returns where it is.';

-- The caller's search_path cannot redirect the function, and its plan stays right while the table
-- grows: the same settings as those of append_to_stream().
DO $$
DECLARE
    signature CONSTANT text :=
        'append_event(text, text, jsonb, text, jsonb, uuid, timestamptz, integer)';
BEGIN
    EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', signature, current_schema());
    EXECUTE format('ALTER FUNCTION %s SET plan_cache_mode = force_generic_plan', signature);
    EXECUTE format('ALTER FUNCTION %s SET enable_seqscan = off', signature);
END $$;
