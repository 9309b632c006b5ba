-- Publish. No column of what is published can be changed; stream_id is set to itself when a row is marked.
GRANT SELECT, DELETE ON outbox TO {role};
GRANT INSERT (event_id, stream_id, stream_version, position, event_type, schema_version, routing_key, payload,
              metadata, occurred_at, recorded_at)
    ON outbox TO {role};
GRANT UPDATE (processed_at, held, available_at, stream_id) ON outbox TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_holds TO {role};
GRANT SELECT, UPDATE ON outbox_lanes TO {role};
-- Time and role of a decision come from PostgreSQL.
GRANT INSERT (actor, action, outbox_id, event_id, stream_id, event_type, reason) ON outbox_audit TO {role};
GRANT SELECT ON events, outbox_relay_migrations, events_position_seq, outbox_id_seq TO {role};
GRANT SELECT, UPDATE ON outbox_floor, outbox_sleeper TO {role};
