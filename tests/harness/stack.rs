//! Private databases and a private virtual host for each test.

use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};

use futures_util::FutureExt;
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tempfile::TempDir;
use url::Url;
use uuid::Uuid;

use crate::{Daemon, Program};

/// The databases and the virtual host of one test. The end of the test removes them.
pub struct Stack {
    name: String,
    /// The URL of the event store.
    pub postgres_url: String,
    /// The URL of the read models.
    pub mysql_url: String,
    /// The URL of the broker.
    pub amqp_url: String,
    management: String,
    folder: TempDir,
}

/// The root of the workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// An event for `append_to_stream`, with a new id.
pub fn event(event_type: &str, data: &Value) -> Value {
    json!({ "event_id": Uuid::new_v4(), "type": event_type, "data": data })
}

fn server(variable: &str) -> Url {
    let url = env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run `cargo xtask test`"));
    Url::parse(&url).unwrap_or_else(|_| panic!("{variable} is not a URL"))
}

impl Stack {
    /// Runs a test with private, migrated databases.
    pub async fn run(test: impl AsyncFnOnce(&Stack)) {
        Self::run_empty(async |stack| {
            stack.relay().arg("migrate").succeed().await;
            test(stack).await;
        })
        .await;
    }

    /// Runs a test with private, empty databases.
    pub async fn run_empty(test: impl AsyncFnOnce(&Stack)) {
        let stack = Self::create().await;
        let result = AssertUnwindSafe(test(&stack)).catch_unwind().await;
        if result.is_err() {
            Daemon::print_logs(stack.folder.path());
        }
        stack.remove().await;
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    }

    async fn create() -> Self {
        let name = format!("t{}", &Uuid::new_v4().simple().to_string()[..12]);
        let url = |variable| {
            let mut url = server(variable);
            url.set_path(&name);
            url.to_string()
        };
        let stack = Self {
            postgres_url: url("EVENT_STORE_URL"),
            mysql_url: url("READ_MODEL_URL"),
            amqp_url: url("AMQP_URL"),
            management: server("RABBITMQ_MANAGEMENT_URL").to_string(),
            folder: tempfile::tempdir().expect("the folder for logs is created"),
            name,
        };
        let create = || AssertSqlSafe(format!("CREATE DATABASE {}", stack.name));
        let mut postgres = connect_postgres(server("EVENT_STORE_URL").as_str()).await;
        postgres.execute(create()).await.expect("the PostgreSQL database is created");
        let mut mysql = connect_mysql(server("READ_MODEL_URL").as_str()).await;
        mysql.execute(create()).await.expect("the MySQL database is created");
        let user = server("AMQP_URL").username().to_owned();
        stack.manage("PUT", &format!("vhosts/{}", stack.name), &json!({})).await;
        let rights = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        stack.manage("PUT", &format!("permissions/{}/{user}", stack.name), &rights).await;
        stack
    }

    async fn remove(&self) {
        let mut postgres = connect_postgres(server("EVENT_STORE_URL").as_str()).await;
        let drop = AssertSqlSafe(format!("DROP DATABASE {} WITH (FORCE)", self.name));
        postgres.execute(drop).await.expect("the PostgreSQL database is dropped");
        let mut mysql = connect_mysql(server("READ_MODEL_URL").as_str()).await;
        let drop = AssertSqlSafe(format!("DROP DATABASE {}", self.name));
        mysql.execute(drop).await.expect("the MySQL database is dropped");
        self.manage("DELETE", &format!("vhosts/{}", self.name), &Value::Null).await;
    }

    /// Calls RabbitMQ's management API.
    ///
    /// # Panics
    ///
    /// When the call fails.
    pub async fn manage(&self, method: &str, path: &str, body: &Value) -> Value {
        let url = format!("{}api/{path}", self.management);
        let (method, body) = (method.to_owned(), body.to_string());
        let call = tokio::task::spawn_blocking(move || {
            let mut response = match method.as_str() {
                "GET" => ureq::get(&url).call(),
                "DELETE" => ureq::delete(&url).call(),
                "POST" => ureq::post(&url).content_type("application/json").send(&body),
                _ => ureq::put(&url).content_type("application/json").send(&body),
            }
            .unwrap_or_else(|error| panic!("{method} {url}: {error}"));
            response.body_mut().read_to_string().expect("the answer has a body")
        });
        let text = call.await.expect("the call of the management API ends");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// The name of the databases and the virtual host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder for the test's files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A connection to the event store.
    pub async fn postgres(&self) -> PgConnection {
        connect_postgres(&self.postgres_url).await
    }

    /// A connection to the read models.
    pub async fn mysql(&self) -> MySqlConnection {
        connect_mysql(&self.mysql_url).await
    }

    /// A connection to the broker through lapin, as another program would open it.
    ///
    /// # Panics
    ///
    /// When the connection fails.
    pub async fn amqp(&self) -> lapin::Connection {
        lapin::Connection::connect(&self.amqp_url, lapin::ConnectionProperties::default())
            .await
            .expect("RabbitMQ accepts the connection")
    }

    /// A connection to the broker as the daemons open it.
    ///
    /// # Panics
    ///
    /// When the connection fails.
    pub async fn broker(&self) -> broker::Connection {
        let url = SecretString::from(self.amqp_url.clone());
        let options = broker::Options::parse(&url, "test").expect("the URL is valid");
        broker::Connection::connect(&options).await.expect("RabbitMQ accepts the connection")
    }

    /// A session in the event store as the daemons open it.
    ///
    /// # Panics
    ///
    /// When the connection fails.
    pub async fn session(&self) -> event_store::Session {
        let url = SecretString::from(self.postgres_url.clone());
        let options = event_store::Options::parse(&url, "test").expect("the URL is valid");
        event_store::Session::connect(&options).await.expect("PostgreSQL accepts the connection")
    }

    /// Appends events to a stream at any version, in one transaction.
    ///
    /// # Panics
    ///
    /// When PostgreSQL refuses the events.
    pub async fn append(&self, stream_id: &str, events: &[Value]) -> i64 {
        let mut connection = self.postgres().await;
        append(&mut connection, stream_id, None, &json!(events))
            .await
            .expect("PostgreSQL accepts the events")
    }

    /// The relay without arguments.
    pub fn relay(&self) -> Program {
        Program::new("outbox-relay", self.folder())
            .env("EVENT_STORE_URL", &self.postgres_url)
            .env("AMQP_URL", &self.amqp_url)
            .env("OUTBOX_RELAY__RELAY__HTTP_LISTEN", "127.0.0.1:0")
            .env("OUTBOX_RELAY__RELAY__POLL_MAX", "50ms")
            .env("OUTBOX_RELAY__RELAY__RETRY_MAX", "500ms")
            .env("OUTBOX_RELAY__RELAY__RECONNECT_MAX", "500ms")
    }

    /// The projector with a folder of projections and without arguments.
    pub fn projector(&self, projections: impl AsRef<Path>) -> Program {
        self.projector_program("projector", projections)
    }

    /// An example program of the projector crate: a projector with projections in Rust.
    pub fn projector_program(&self, name: &'static str, projections: impl AsRef<Path>) -> Program {
        let folder = root().join(projections).display().to_string();
        Program::new(name, self.folder())
            .env("EVENT_STORE_URL", &self.postgres_url)
            .env("AMQP_URL", &self.amqp_url)
            .env("READ_MODEL_URL", &self.mysql_url)
            .env("PROJECTOR__PROJECTOR__HTTP_LISTEN", "127.0.0.1:0")
            .env("PROJECTOR__PROJECTOR__PROJECTIONS_DIR", &folder)
            .env("PROJECTOR__PROJECTOR__SWEEP_INTERVAL", "500ms")
            .env("PROJECTOR__PROJECTOR__SWEEP_GRACE", "1s")
            .env("PROJECTOR__PROJECTOR__RETRY_MAX", "500ms")
    }

    /// The workload program without arguments.
    pub fn workload(&self) -> Program {
        Program::new("workload", self.folder()).env("EVENT_STORE_URL", &self.postgres_url)
    }
}

/// Calls `append_to_stream`.
///
/// # Errors
///
/// When PostgreSQL refuses the events.
pub async fn append(
    connection: &mut PgConnection,
    stream_id: &str,
    expected: Option<i64>,
    events: &Value,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT append_to_stream($1, $2, $3::jsonb)")
        .bind(stream_id)
        .bind(expected)
        .bind(events.to_string())
        .fetch_one(connection)
        .await
}

async fn connect_postgres(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("PostgreSQL accepts the connection")
}

async fn connect_mysql(url: &str) -> MySqlConnection {
    MySqlConnection::connect(url).await.expect("MySQL accepts the connection")
}

/// Writes some files of a projection into a folder of projections. A projection that has no `projection.toml`
/// follows the category `order`.
///
/// # Panics
///
/// When a file cannot be written.
pub fn write_projection(folder: &Path, name: &str, files: &[(&str, &str)]) {
    let directory = folder.join(name);
    fs::create_dir_all(&directory).expect("the folder is created");
    let definition = directory.join("projection.toml");
    if !definition.exists() {
        fs::write(definition, "categories = [\"order\"]\n").expect("the file is written");
    }
    for (file, text) in files {
        fs::write(directory.join(file), text).expect("the file is written");
    }
}
