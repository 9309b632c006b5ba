//! Operation: migrations, invalid settings, unreachable servers.

use std::fs;

use futures_util::future::join_all;
use harness::{Stack, event, eventually, root};
use serde_json::json;

pub(crate) const SHOP: &str = "config/projections";

/// Migrations can run repeatedly and concurrently.
#[tokio::test(flavor = "multi_thread")]
async fn migrating_twice_or_at_once_is_harmless() {
    Stack::run_empty(async |stack| {
        let (relay, projector) =
            (stack.relay().arg("migrate"), stack.projector(SHOP).arg("migrate"));
        let outputs = join_all((0..4).map(|_| relay.succeed())).await;
        assert!(outputs.iter().all(|output| output.contains("is up to date")), "{outputs:?}");
        let outputs = join_all((0..4).map(|_| projector.succeed())).await;
        let made = outputs
            .iter()
            .filter(|output| output.contains("order_summary: the tables were created"));
        assert_eq!(made.count(), 1, "{outputs:?}");
        relay.succeed().await;
        assert!(projector.succeed().await.contains("order_summary: up to date"));
    })
    .await;
}

/// A database administrator can apply the migrations with psql: the files are plain SQL.
#[tokio::test]
async fn the_migrations_are_plain_sql() {
    Stack::run_empty(async |stack| {
        let mut connection = stack.postgres().await;
        let folder = fs::read_dir(root().join("migrations/postgres")).unwrap();
        let files = folder.map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|it| it == "sql")).collect();
        files.sort();
        assert!(files.len() > 2, "{files:?}");
        for file in files {
            let sql = fs::read_to_string(file).unwrap();
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        }
        stack.append("order-1", &[event("A", &json!({}))]).await;
    })
    .await;
}

/// Daemons can start before servers and migrations. They name the missing part, and begin work once it
/// exists.
#[tokio::test(flavor = "multi_thread")]
async fn daemons_wait_for_servers_and_migrations() {
    Stack::run_empty(async |stack| {
        // No server listens on this port yet.
        let port = free_port();
        let at_port = |url: &str| {
            let mut url = url::Url::parse(url).unwrap();
            let before = url.port().unwrap();
            url.set_port(Some(port)).unwrap();
            (url.to_string(), before)
        };
        let (postgres_url, postgres_port) = at_port(&stack.postgres_url);
        let relay = stack.relay().env("EVENT_STORE_URL", &postgres_url).start();
        let projector = stack.projector(SHOP).env("EVENT_STORE_URL", &postgres_url).start();
        for (daemon, reason) in [
            (&relay, format!("PostgreSQL at 127.0.0.1:{port}/{} cannot be reached", stack.name())),
            (&projector, "is missing in MySQL: run `projector migrate`".to_owned()),
        ] {
            let output = eventually("readiness names the missing server or table", async || {
                let (status, body) = daemon.get("/readyz").await?;
                (status == 503 && body.contains(&reason)).then_some(body)
            });
            assert!(output.await.contains("since"));
            assert_eq!(daemon.get("/livez").await.unwrap().0, 200);
            let warnings = daemon.log().lines().filter(|line| line.contains("\"WARN\"")).count();
            assert!(
                warnings <= 3,
                "the daemon logs each attempt instead of each change: {}",
                daemon.log()
            );
        }
        stack.projector(SHOP).arg("migrate").succeed().await;
        stack.relay().arg("migrate").succeed().await;

        let server = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let forward = async {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (mut client, _) = server.accept().await.unwrap();
                connections.spawn(async move {
                    let address = ("127.0.0.1", postgres_port);
                    let mut server = tokio::net::TcpStream::connect(address).await.unwrap();
                    drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
                });
            }
        };
        tokio::select! {
            () = forward => {}
            () = async { relay.ready().await; projector.ready().await } => {}
        }
        assert!(relay.log().contains("works again"));
    })
    .await;
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A refused login ends a program, because no repetition succeeds. The message omits the password.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_ends_the_program_with_77() {
    Stack::run_empty(async |stack| {
        let wrong = |url: &str| {
            let mut url = url::Url::parse(url).unwrap();
            url.set_password(Some("canary-9f3a")).unwrap();
            url.to_string()
        };
        let relay = stack.relay();
        let projector = stack.projector(SHOP);
        let cases = [
            (relay.clone().arg("migrate"), "EVENT_STORE_URL", &stack.postgres_url, "PostgreSQL"),
            (relay.clone().arg("run"), "EVENT_STORE_URL", &stack.postgres_url, "PostgreSQL"),
            (relay.clone().arg("run"), "AMQP_URL", &stack.amqp_url, "RabbitMQ"),
            (projector.clone().arg("migrate"), "READ_MODEL_URL", &stack.mysql_url, "MySQL"),
            (projector.clone().arg("check"), "READ_MODEL_URL", &stack.mysql_url, "MySQL"),
            (projector.clone().arg("run"), "READ_MODEL_URL", &stack.mysql_url, "MySQL"),
        ];
        for (program, variable, url, server) in cases {
            let output = program.env(variable, &wrong(url)).fail(77).await;
            assert!(output.contains(&format!("{server} at 127.0.0.1:")), "{output}");
            assert!(output.contains("refused the login: check user, password"), "{output}");
            assert!(!output.contains("canary-9f3a"), "{output}");
        }
    })
    .await;
}

/// A command does not wait for an unreachable server.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_server_ends_a_command_with_69() {
    Stack::run_empty(async |stack| {
        let port = free_port();
        let elsewhere = |url: &str| {
            let mut url = url::Url::parse(url).unwrap();
            url.set_port(Some(port)).unwrap();
            url.to_string()
        };
        let migrate = stack.relay().arg("migrate");
        let url = elsewhere(&stack.postgres_url);
        let output = migrate.clone().env("EVENT_STORE_URL", &url).fail(69).await;
        assert!(
            output.contains(&format!("127.0.0.1:{port}")) && output.contains("refused"),
            "{output}"
        );
        let unknown = "postgres://app:secret@no-such-host.invalid/app";
        let output = migrate.env("EVENT_STORE_URL", unknown).fail(69).await;
        assert!(output.contains("no-such-host.invalid") && !output.contains("secret"), "{output}");
        let url = elsewhere(&stack.mysql_url);
        let check = stack.projector(SHOP).arg("check").env("READ_MODEL_URL", &url);
        assert!(check.fail(69).await.contains("cannot be reached"));
        let url = elsewhere(&stack.postgres_url);
        let generate = stack.workload().arg("generate").env("EVENT_STORE_URL", &url);
        assert!(generate.fail(69).await.contains("cannot be reached"));
    })
    .await;
}

/// OPERATIONS.md describes each metric that the daemons expose.
#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_documented() {
    Stack::run(async |stack| {
        stack.projector(SHOP).arg("migrate").succeed().await;
        let daemons =
            [stack.relay().start_ready().await, stack.projector(SHOP).start_ready().await];
        // A series appears with its first count, so the test counts an event first.
        stack.workload().arg("generate").arg("--events").arg("50").succeed().await;
        eventually("the events are applied and the sweeper has run", async || {
            let (_, text) = daemons[1].get("/metrics").await?;
            let seen = |series: &str| text.contains(series);
            (seen("outcome=\"applied\"") && seen("projector_lag_seconds{")).then_some(())
        })
        .await;
        let explained = fs::read_to_string(root().join("OPERATIONS.md")).unwrap();
        let mut metrics = 0;
        for daemon in &daemons {
            let (_, text) = daemon.get("/metrics").await.unwrap();
            for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
                let (name, kind) = line.split_once(' ').unwrap();
                let suffix = match kind {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                let name = format!("`{name}{suffix}");
                assert!(explained.contains(&name), "{name} is not in OPERATIONS.md");
                metrics += 1;
            }
        }
        assert!(metrics > 15, "{metrics} metrics");
    })
    .await;
}

/// `migrate` refuses tables and bookkeeping that do not belong together. They would silently give
/// wrong read models.
#[tokio::test(flavor = "multi_thread")]
async fn tables_without_their_bookkeeping_are_refused() {
    Stack::run_empty(async |stack| {
        let migrate = stack.projector(SHOP).arg("migrate");
        let mut mysql = stack.mysql().await;
        sqlx::raw_sql("CREATE TABLE order_summary (x INT)").execute(&mut mysql).await.unwrap();
        let output = migrate.fail(1).await;
        assert!(output.contains("order_summary exists, but its bookkeeping"), "{output}");
        sqlx::raw_sql("DROP TABLE order_summary").execute(&mut mysql).await.unwrap();
        migrate.succeed().await;
        sqlx::raw_sql(
            "INSERT INTO order_summary__streams (stream_id, version, previous_version, event_id)
             VALUES ('order-1', 1, 0, UUID_TO_BIN(UUID()));
             DROP TABLE order_summary",
        )
        .execute(&mut mysql)
        .await
        .unwrap();
        let output = migrate.fail(1).await;
        assert!(
            output.contains("table order_summary is missing, but order_summary__streams"),
            "{output}"
        );
    })
    .await;
}

/// No log contains a password or a payload, whatever fails and whatever is logged.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_is_logged() {
    Stack::run(async |stack| {
        stack.projector(SHOP).arg("migrate").succeed().await;
        let everything = "trace,lapin=trace,sqlx=trace,hyper=trace,lapin::returned_messages=trace";
        let debug = |program: harness::Program| program.env("RUST_LOG", everything);
        let relay = debug(stack.relay()).start_ready().await;
        let projector = debug(stack.projector(SHOP)).start_ready().await;
        let canary = "canary-71c2e8";
        let data = json!({ "customer": { "id": canary, "name": canary, "country": canary },
                           "currency": canary, "total": canary, "amount": canary });
        stack.append("order-1", &[event("OrderPlaced", &data)]).await;
        stack.append("unheard-1", &[event("OrderPlaced", &data)]).await;
        eventually("both have failed", async || {
            let returned = "outbox_relay_messages_published_total{outcome=\"returned\"}";
            let failed = projector.log().contains("a stream is parked");
            (relay.metric(returned).await > 0.0 && failed).then_some(())
        })
        .await;
        let (_, relay_report) = relay.get("/readyz").await.unwrap();
        let (_, projector_report) = projector.get("/readyz").await.unwrap();
        for text in [relay.log(), projector.log(), relay_report, projector_report] {
            assert!(!text.contains(canary), "{text}");
            assert!(!text.contains("://"), "{text}");
        }
    })
    .await;
}
