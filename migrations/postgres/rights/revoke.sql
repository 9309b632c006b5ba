REVOKE ALL ON events, outbox, outbox_holds, outbox_lanes, outbox_audit, outbox_relay_migrations FROM {role};
REVOKE ALL ON events_position_seq, outbox_id_seq, outbox_floor, outbox_sleeper, outbox_audit_id_seq FROM {role};
