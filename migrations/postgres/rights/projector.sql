-- Read history, and what is not published yet.
GRANT SELECT ON events, events_position_seq, outbox, outbox_lanes, outbox_floor, outbox_relay_migrations
    TO {role};
