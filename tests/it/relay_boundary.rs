//! What other roles of the event store can do to the relay, and what they cannot.

use harness::{Stack, Tap, event, eventually};
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use url::Url;

use crate::relay::all_processed;

/// Rows of an application that no program of this project would write. The others flow.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_row_holds_its_own_stream_only() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let mut owner = stack.postgres().await;
        // They are refused now, but earlier ones may still be there.
        sqlx::raw_sql(
            "ALTER TABLE outbox DISABLE TRIGGER outbox_new_rows_are_pending,
                                DROP CONSTRAINT outbox_event_type_valid,
                                DROP CONSTRAINT outbox_schema_version_valid",
        )
        .execute(&mut owner)
        .await
        .unwrap();
        let insert =
            "INSERT INTO outbox (event_id, stream_id, stream_version, position, event_type,
                                          schema_version, routing_key, payload, occurred_at)
             VALUES (gen_random_uuid(), 'bad-1', 1, -5, 'X', 1, 'bad.X', '{}', now()),
                    (gen_random_uuid(), 'bad-3', 1, 8, 'a b', 1, 'bad.X', '{}', now()),
                    (gen_random_uuid(), 'bad-4', 1, 9, 'X', 0, 'bad.X', '{}', now()),
                    (gen_random_uuid(), 'bad-1', 2, 10, 'X', 1, 'bad.X', '{}', now())";
        owner.execute(insert).await.unwrap();
        for number in 0..50 {
            stack.append(&format!("order-{number}"), &[event("A", &json!({}))]).await;
        }
        let relay = stack.relay().start_ready().await;
        tap.wait_for(50).await;
        let list = stack.relay().args(["parked", "list", "--reason", "malformed", "--json"]);
        let parked: Vec<Value> = eventually("the malformed rows are parked", async || {
            let parked: Vec<Value> = serde_json::from_str(&list.succeed().await).unwrap();
            (parked.len() == 3).then_some(parked)
        })
        .await;
        let first = parked.iter().find(|stream| stream["stream_key"] == "bad-1").unwrap();
        let error = first["last_error"].as_str().unwrap();
        assert!(error.contains("a position must be an integer from 0"), "{error}");
        assert_eq!(first["events"], 2);
        let status = stack.relay().arg("status").fail(1).await;
        assert!(status.contains("3 streams are parked (malformed)"), "{status}");
        assert!(relay.log().contains("stream parked"), "it is logged");

        let id = first["id"].to_string();
        owner.execute("UPDATE outbox SET position = NULL WHERE position = -5").await.unwrap();
        stack.relay().args(["parked", "retry", &id]).succeed().await;
        tap.wait_for(52).await;
        for stream in parked.iter().filter(|stream| stream["stream_key"] != "bad-1") {
            let skip = stack.relay().args(["parked", "skip", &stream["id"].to_string()]);
            skip.args(["--reason", "made by a test"]).succeed().await;
        }
        all_processed(stack).await;
    })
    .await;
}

/// Legal rows with which an application would like to stop the others. After each, another stream is published.
#[tokio::test(flavor = "multi_thread")]
async fn no_row_of_an_application_stops_other_streams() {
    Stack::run(async |stack| {
        let tap = Tap::open(stack).await;
        let roles = Roles::create(stack).await;
        let mut application = roles.connect("application").await;
        let relay = stack.relay().env("EVENT_STORE_URL", &roles.url("relay"));
        let _relay = relay.env("OUTBOX_RELAY__RELAY__MAX_MESSAGE_BYTES", "100000").start_ready().await;
        let rows = [
            "'X', 'a.' || repeat('x', 253), '{}', '{}', NULL, now(), NULL, 1",
            "'X', '.', '{}', '{}', NULL, now(), NULL, 1",
            "'X', '...', '{}', '{}', NULL, now(), NULL, 1",
            "'X', 'ä€😀', '{}', '{}', NULL, now(), NULL, 1",
            "'X', 'amq.x', '{}', '{}', NULL, now(), NULL, 1",
            "'😀', 'a.x', '{}', '{}', NULL, now(), NULL, 1",
            "'X', 'a.x', 'null', '{}', NULL, now(), NULL, 1",
            "'X', 'a.x', '\"text\"', '{}', NULL, now(), NULL, 1",
            "'X', 'a.x', '1e300', '{}', NULL, now(), NULL, 1",
            "'X', 'a.x', repeat('[', 5000)::text::json::jsonb, '{}', NULL, now(), NULL, 1",
            "'X', 'a.x', (repeat('[', 900) || repeat(']', 900))::jsonb, '{}', NULL, now(), NULL, 1",
            "'X', 'a.x', jsonb_build_object('a', repeat('x', 200000)), '{}', NULL, now(), NULL, 1",
            "'X', 'a.x', '{}', '{\"CC\": [\"a\"], \"BCC\": [\"b\"]}', NULL, now(), NULL, 1",
            "'X', 'a.x', '{}', '{\"x-delay\": 99999999, \"expiration\": \"no\"}', NULL, now(), NULL, 1",
            "'X', 'a.x', '{}', jsonb_build_object('k', repeat('x', 32000)), NULL, now(), NULL, 1",
            "'X', 'a.x', '{}', jsonb_build_object(repeat('k', 3000), 1), NULL, now(), NULL, 1",
            "'X', 'a.x', '{}', '{}', 'order-1', now(), NULL, 1",
            "'X', 'a.x', '{}', '{}', repeat('s', 255), now(), NULL, 1",
            "'X', 'a.x', '{}', '{}', NULL, '0001-01-01 00:00:00+00', NULL, 1",
            "'X', 'a.x', '{}', '{}', NULL, '9999-12-31 23:59:59+00', NULL, 2147483647",
            "'X', 'a.x', '{}', '{}', 'order-1', now(), '9999-12-31 23:59:59+00', 1",
            "'X', 'a.x', '{}', '{}', 'late-1', now(), now() - interval '1 h', 1",
        ];
        for (number, row) in rows.iter().enumerate() {
            let insert = format!(
                "INSERT INTO outbox (event_id, event_type, routing_key, payload, metadata, stream_id,
                                     occurred_at, available_at, schema_version)
                 VALUES (gen_random_uuid(), {row})"
            );
            // A constraint may refuse it, which is as good.
            drop(application.execute(AssertSqlSafe(insert)).await);
            let stream = format!("after-{number}");
            let events = json!([event("A", &json!({}))]);
            harness::append(&mut application, &stream, None, &events).await.unwrap();
            eventually(&format!("a stream flows after {row}"), async || {
                tap.seen().iter().any(|seen| seen.stream_id == stream).then_some(())
            })
            .await;
        }
        drop(application);
        roles.drop().await;
    })
    .await;
}

/// Roles with names that are unique on the server.
struct Roles<'s> {
    stack: &'s Stack,
}

const ROLES: [&str; 4] = ["application", "relay", "projector", "stranger"];

impl<'s> Roles<'s> {
    /// Creates the roles with the rights for their tasks, and one without any right.
    async fn create(stack: &'s Stack) -> Self {
        let roles = Self { stack };
        let mut owner = stack.postgres().await;
        for role in ROLES {
            let create = format!("CREATE ROLE {} LOGIN PASSWORD 'secret'", roles.name(role));
            owner.execute(AssertSqlSafe(create)).await.unwrap();
        }
        // A grant of an earlier version is narrowed.
        let wide = format!("GRANT INSERT ON events, outbox TO {}", roles.name("application"));
        owner.execute(AssertSqlSafe(wide)).await.unwrap();
        roles.grant("application", &["append", "integration"]).await;
        roles.grant("relay", &["relay"]).await;
        roles.grant("projector", &["projector"]).await;
        roles
    }

    async fn grant(&self, role: &str, tasks: &[&str]) {
        let grants = self.stack.relay().args(["grants", "--role", &self.name(role), "--apply"]);
        let tasks = tasks.iter().flat_map(|task| ["--as", task]);
        grants.args(tasks).succeed().await;
    }

    fn name(&self, role: &str) -> String {
        format!("{}_{role}", self.stack.name())
    }

    fn url(&self, role: &str) -> String {
        let mut url = Url::parse(&self.stack.postgres_url).unwrap();
        url.set_username(&self.name(role)).unwrap();
        url.set_password(Some("secret")).unwrap();
        url.to_string()
    }

    async fn connect(&self, role: &str) -> PgConnection {
        PgConnection::connect(&self.url(role)).await.unwrap()
    }

    async fn drop(self) {
        let mut owner = self.stack.postgres().await;
        for role in ROLES {
            let name = self.name(role);
            let drop = format!("DROP OWNED BY {name}; DROP ROLE {name}");
            sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut owner).await.unwrap();
        }
    }

    /// Statements that a role may not run. Each must be refused for want of a right.
    async fn refused(&self, role: &str, statements: &[&'static str]) {
        let mut connection = self.connect(role).await;
        for sql in statements {
            let result = sqlx::raw_sql(*sql).execute(&mut connection).await;
            let error = result.err().unwrap_or_else(|| panic!("{role} may not: {sql}"));
            let code = error.as_database_error().and_then(|error| error.code().map(String::from));
            assert_eq!(code.as_deref(), Some("42501"), "{role}: {sql}: {error}");
            connection.execute("ROLLBACK").await.unwrap();
        }
    }
}

/// What nobody may do but the owner of the tables.
const FOR_THE_OWNER: [&str; 30] = [
    "UPDATE events SET data = '{}'",
    "DELETE FROM events",
    "TRUNCATE events",
    "DROP TABLE events",
    "ALTER TABLE events DISABLE TRIGGER events_capture",
    "ALTER TABLE outbox DROP CONSTRAINT outbox_times_valid",
    "CREATE INDEX ON events (event_type)",
    "CREATE TRIGGER mine AFTER INSERT ON events EXECUTE FUNCTION capture_events()",
    "CREATE TEMP TABLE mine (LIKE events); CREATE TRIGGER mine AFTER INSERT ON mine
     REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION capture_events()",
    "CREATE TEMP TABLE mine (a int); CREATE TRIGGER mine AFTER INSERT ON mine
     FOR EACH STATEMENT EXECUTE FUNCTION wake_relay()",
    "CREATE TEMP TABLE mine (a int); CREATE TRIGGER mine BEFORE INSERT ON mine
     FOR EACH ROW EXECUTE FUNCTION refuse_settled_outbox_row()",
    "INSERT INTO events (position, event_id, stream_id, stream_version, event_type, data)
     OVERRIDING SYSTEM VALUE VALUES (-5, gen_random_uuid(), 'a-1', 1, 'X', '{}')",
    "INSERT INTO events (position, event_id, stream_id, stream_version, event_type, data)
     OVERRIDING SYSTEM VALUE VALUES (1000000, gen_random_uuid(), 'a-1', 1, 'X', '{}')",
    "INSERT INTO events (event_id, stream_id, stream_version, event_type, data, recorded_at)
     VALUES (gen_random_uuid(), 'a-1', 1, 'X', '{}', '2000-01-01')",
    "BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE",
    "BEGIN; LOCK TABLE events IN ROW EXCLUSIVE MODE",
    "SELECT setval('events_position_seq', 1)",
    "SELECT setval('outbox_id_seq', 1)",
    "SELECT nextval('events_position_seq')",
    "UPDATE outbox SET payload = '{}'",
    "UPDATE outbox SET event_id = gen_random_uuid()",
    "UPDATE outbox SET routing_key = 'a.b'",
    "UPDATE outbox SET position = 7",
    "TRUNCATE outbox",
    "INSERT INTO outbox_lanes VALUES (0)",
    "DELETE FROM outbox_lanes",
    "DELETE FROM outbox_audit",
    "UPDATE outbox_audit SET actor = 'nobody'",
    "DELETE FROM outbox_relay_migrations",
    "SET session_replication_role = replica",
];
/// What only the relay may do.
const FOR_THE_RELAY: [&str; 19] = [
    "UPDATE outbox SET processed_at = now()",
    "UPDATE outbox SET held = true",
    "DELETE FROM outbox",
    "BEGIN; LOCK TABLE outbox IN ROW EXCLUSIVE MODE",
    "BEGIN; LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE",
    "INSERT INTO outbox (id, event_id, event_type, routing_key, payload)
     OVERRIDING SYSTEM VALUE VALUES (1000000, gen_random_uuid(), 'X', 'a.X', '{}')",
    "INSERT INTO outbox (event_id, stream_id, stream_version, position, event_type, routing_key, payload)
     VALUES (gen_random_uuid(), 'a-1', 1, -5, 'X', 'a.X', '{}')",
    "INSERT INTO outbox (event_id, event_type, routing_key, payload, created_at)
     VALUES (gen_random_uuid(), 'X', 'a.X', '{}', '2000-01-01')",
    "INSERT INTO outbox (event_id, event_type, routing_key, payload, processed_at)
     VALUES (gen_random_uuid(), 'X', 'a.X', '{}', now())",
    "INSERT INTO outbox (event_id, event_type, routing_key, payload, held)
     VALUES (gen_random_uuid(), 'X', 'a.X', '{}', true)",
    "INSERT INTO outbox (event_id, event_type, routing_key, payload, recorded_at)
     VALUES (gen_random_uuid(), 'X', 'a.X', '{}', now())",
    "SELECT setval('outbox_floor', 1000000)",
    "SELECT setval('outbox_sleeper', 1)",
    "SELECT FROM outbox_lanes FOR UPDATE",
    "UPDATE outbox_lanes SET lane = lane",
    "INSERT INTO outbox_holds (stream_key, lane, outbox_id, attempts, last_error, until)
     VALUES ('a-1', 0, 1, 1, '', 'infinity')",
    "DELETE FROM outbox_holds",
    "INSERT INTO outbox_audit (actor, action) VALUES ('nobody', 'skip')",
    "SELECT * FROM outbox_audit",
];

/// No role can do more than its task needs, and a role without a right can do nothing.
#[tokio::test(flavor = "multi_thread")]
async fn no_role_can_do_more_than_its_task() {
    Stack::run(async |stack| {
        let roles = Roles::create(stack).await;
        for role in ROLES {
            roles.refused(role, &FOR_THE_OWNER).await;
        }
        for role in ["application", "projector", "stranger"] {
            roles.refused(role, &FOR_THE_RELAY).await;
        }
        let append = "SELECT append_event('a', 'X', '{}')";
        let integration_event = "INSERT INTO outbox (event_id, event_type, routing_key, payload)
                                 VALUES (gen_random_uuid(), 'X', 'a.X', '{}')";
        let read = "SELECT * FROM events";
        let forged = [
            "INSERT INTO outbox_audit (actor, action, at) VALUES ('nobody', 'skip', '2000-01-01')",
            "INSERT INTO outbox_audit (actor, action, role) VALUES ('nobody', 'skip', 'postgres')",
            "SELECT * FROM outbox_audit",
        ];
        roles.refused("relay", &[append, forged[0], forged[1], forged[2]]).await;
        roles.refused("projector", &[append, integration_event]).await;
        roles.refused("application", &["SELECT * FROM outbox", "SELECT * FROM outbox_holds"]).await;
        roles.refused("stranger", &[append, integration_event, read, "SELECT * FROM outbox"]).await;
        let mut application = roles.connect("application").await;
        for allowed in [append, integration_event, read] {
            application.execute(allowed).await.unwrap();
        }
        drop(application);
        roles.drop().await;
    })
    .await;
}

/// Numbers that an owner or a role with old, wider rights chose itself are refused too.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_would_stop_everything_are_refused() {
    Stack::run(async |stack| {
        let mut owner = stack.postgres().await;
        for number in ["0", "-5", "9223372036854775807"] {
            for (sql, state) in [
                (
                    format!(
                        "INSERT INTO outbox (event_id, stream_id, stream_version, position, event_type,
                                             routing_key, payload)
                         VALUES (gen_random_uuid(), 'a-1', 1, {number}, 'X', 'a.X', '{{}}')"
                    ),
                    "ES009",
                ),
                (
                    format!(
                        "INSERT INTO outbox (id, event_id, event_type, routing_key, payload)
                         OVERRIDING SYSTEM VALUE
                         VALUES ({number}, gen_random_uuid(), 'X', 'a.X', '{{}}')"
                    ),
                    "ES009",
                ),
                (
                    format!(
                        "INSERT INTO outbox (event_id, stream_id, stream_version, event_type,
                                             routing_key, payload)
                         VALUES (gen_random_uuid(), 'a-1', {number}, 'X', 'a.X', '{{}}')"
                    ),
                    // The constraint is older than the trigger's limit.
                    if number.len() > 2 { "ES009" } else { "23514" },
                ),
                (
                    format!(
                        "INSERT INTO events (position, event_id, stream_id, stream_version, event_type,
                                             data)
                         OVERRIDING SYSTEM VALUE
                         VALUES ({number}, gen_random_uuid(), 'a-1', 1, 'X', '{{}}')"
                    ),
                    "23514",
                ),
            ] {
                let error = owner.execute(AssertSqlSafe(sql.clone())).await.err();
                let error = error.unwrap_or_else(|| panic!("{sql} is refused"));
                let code = error.as_database_error().and_then(|error| error.code().map(String::from));
                assert_eq!(code.as_deref(), Some(state), "{sql}: {error}");
            }
        }
    })
    .await;
}
