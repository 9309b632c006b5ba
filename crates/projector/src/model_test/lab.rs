//! The servers of the test.

use std::env;
use std::path::Path;
use std::time::Duration;

use daemon::{LogFormat, LogSettings};
use read_model::{Breaker, Registry, Session};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, PgConnection};
use uuid::Uuid;

use crate::Settings;

/// The servers, with databases of their own.
pub(super) struct Lab {
    name: String,
    postgres_url: String,
    mysql_url: String,
    pub(super) postgres: PgConnection,
    pub(super) mysql: MySqlConnection,
    pub(super) cases: u32,
}

impl Lab {
    pub(super) async fn create() -> Self {
        let server = |variable: &str| {
            let url = env::var(variable)
                .unwrap_or_else(|_| panic!("{variable} is not set: run `cargo xtask test`"));
            (url.clone(), url.rsplit_once('/').map(|(server, _)| server.to_owned()).unwrap())
        };
        let name = format!("model_{}", Uuid::new_v4().simple());
        let [(postgres, in_postgres), (mysql, in_mysql)] =
            ["EVENT_STORE_URL", "READ_MODEL_URL"].map(server);
        let create = format!("CREATE DATABASE {name}");
        let mut server = PgConnection::connect(&postgres).await.unwrap();
        server.execute(AssertSqlSafe(create.clone())).await.unwrap();
        let mut server = MySqlConnection::connect(&mysql).await.unwrap();
        server.execute(AssertSqlSafe(create)).await.unwrap();
        let (postgres_url, mysql_url) =
            (format!("{in_postgres}/{name}"), format!("{in_mysql}/{name}"));
        let lab = Self {
            postgres: PgConnection::connect(&postgres_url).await.unwrap(),
            mysql: MySqlConnection::connect(&mysql_url).await.unwrap(),
            name,
            postgres_url,
            mysql_url,
            cases: 0,
        };
        lab.store().await.migrate().await.unwrap();
        lab.session().await.migrate().await.unwrap();
        lab
    }

    pub(super) async fn session(&self) -> Session {
        Session::connect(&self.settings(Path::new("")).mysql().unwrap()).await.unwrap()
    }

    pub(super) async fn store(&self) -> event_store::Session {
        let options = self.settings(Path::new("")).store().unwrap();
        event_store::Session::connect(&options).await.unwrap()
    }

    pub(super) fn settings(&self, folder: &Path) -> Settings {
        let unused = Duration::from_secs(1);
        Settings {
            postgres_url: SecretString::from(self.postgres_url.clone()),
            statement_timeout: Duration::from_secs(30),
            rabbitmq_url: SecretString::from("amqp://localhost"),
            exchange: "events".to_owned(),
            mysql_url: SecretString::from(self.mysql_url.clone()),
            log: LogSettings { format: LogFormat::Json, filter: "off".to_owned() },
            http_listen: ([127, 0, 0, 1], 0).into(),
            projections_dir: folder.to_path_buf(),
            projections: Vec::new(),
            queue_prefix: "projector".to_owned(),
            batch_size: 500,
            prefetch: 500,
            sweep_interval: unused,
            sweep_grace: unused,
            retry_max: unused,
            rebuild_retention: unused,
            breaker: Breaker::NONE,
            code: Registry::default(),
        }
    }

    pub(super) async fn drop(mut self) {
        for suffix in ["", "__new", "__old", "__verify"] {
            let drop = format!("DROP DATABASE IF EXISTS {}{suffix}", self.name);
            self.mysql.execute(AssertSqlSafe(drop)).await.unwrap();
        }
        let mut server =
            PgConnection::connect(&env::var("EVENT_STORE_URL").unwrap()).await.unwrap();
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        server.execute(AssertSqlSafe(drop)).await.unwrap();
    }
}
