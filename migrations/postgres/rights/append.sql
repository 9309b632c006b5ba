-- Append events, and read them. PostgreSQL chooses position and recorded_at.
GRANT SELECT ON events TO {role};
GRANT INSERT (event_id, stream_id, stream_version, event_type, schema_version, data, metadata, occurred_at)
    ON events TO {role};
