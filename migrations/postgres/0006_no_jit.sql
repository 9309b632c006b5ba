-- Before PostgreSQL 18, `enable_seqscan = off` only makes a plan that has no index to use look very
-- expensive, and expensive plans are compiled first (`jit`, on by default). For an append, that took
-- seconds of processor time. Its statements touch a few rows each, so compiling never pays.
ALTER FUNCTION append_to_stream(text, bigint, jsonb) SET jit = off;
ALTER FUNCTION append_event(text, text, jsonb, text, jsonb, uuid, timestamptz, integer) SET jit = off;
