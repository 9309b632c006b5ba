-- Insert integration events. PostgreSQL chooses id and created_at; the other columns are the relay's.
GRANT INSERT (event_id, stream_id, stream_version, event_type, schema_version, routing_key, payload, metadata,
              occurred_at, available_at)
    ON outbox TO {role};
