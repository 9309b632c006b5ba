//! The projector's configuration.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use daemon::output::counted;
use daemon::settings::{Errors, MYSQL, POSTGRESQL, RABBITMQ, Reader, Shown};
use daemon::{Exit, Failure, LogSettings};
use projection::Fault;
use read_model::{Breaker, Definition, Registry};
use secrecy::SecretString;

use crate::error::ServerError;

/// The projector's settings; `config/default.toml` describes each key.
#[derive(Clone)]
pub struct Settings {
    /// `postgres.url`
    pub postgres_url: SecretString,
    /// `postgres.statement_timeout`
    pub statement_timeout: Duration,
    /// `rabbitmq.url`
    pub rabbitmq_url: SecretString,
    /// `rabbitmq.exchange`
    pub exchange: String,
    /// `mysql.url`
    pub mysql_url: SecretString,
    /// `log`
    pub log: LogSettings,
    /// `projector.http_listen`
    pub http_listen: SocketAddr,
    /// `projector.projections_dir`
    pub projections_dir: PathBuf,
    /// `projector.projections`
    pub projections: Vec<String>,
    /// `projector.queue_prefix`
    pub queue_prefix: String,
    /// `projector.batch_size`
    pub batch_size: usize,
    /// `projector.prefetch`
    pub prefetch: u16,
    /// `projector.sweep_interval`
    pub sweep_interval: Duration,
    /// `projector.sweep_grace`
    pub sweep_grace: Duration,
    /// `projector.retry_max`
    pub retry_max: Duration,
    /// `projector.rebuild_retention`
    pub(crate) rebuild_retention: Duration,
    /// `projector.storm_streams`, `storm_window` and `storm_percent`
    pub(crate) breaker: Breaker,
    /// The projections in Rust, if the program has any.
    pub code: Registry,
}

/// The servers whose URLs a command needs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Servers {
    /// PostgreSQL and RabbitMQ
    pub sources: bool,
    /// MySQL
    pub mysql: bool,
}

impl Settings {
    /// Reads the configuration.
    ///
    /// # Errors
    ///
    /// Every error in the configuration.
    pub fn read(mut reader: Reader, needed: Servers) -> Result<(Self, Vec<Shown>), Errors> {
        reader.ignore_section("relay");
        // Only the relay listens, but both may read one file.
        reader.secret_url("postgres.listen_url", &POSTGRESQL, false);
        let settings = Self {
            postgres_url: reader.secret_url("postgres.url", &POSTGRESQL, needed.sources),
            statement_timeout: reader.duration("postgres.statement_timeout", seconds(1..=300)),
            rabbitmq_url: reader.secret_url("rabbitmq.url", &RABBITMQ, needed.sources),
            exchange: reader.text("rabbitmq.exchange"),
            mysql_url: reader.secret_url("mysql.url", &MYSQL, needed.mysql),
            log: LogSettings::read(&mut reader),
            http_listen: reader.address("projector.http_listen"),
            projections_dir: reader.path("projector.projections_dir"),
            projections: reader.list("projector.projections"),
            queue_prefix: reader.text("projector.queue_prefix"),
            batch_size: reader.integer("projector.batch_size", 1..=10_000),
            // RabbitMQ caps a quorum queue's prefetch at 2,000.
            prefetch: reader.integer("projector.prefetch", 1..=2_000),
            sweep_interval: reader
                .duration("projector.sweep_interval", milliseconds(100..=3_600_000)),
            sweep_grace: reader.duration("projector.sweep_grace", milliseconds(100..=3_600_000)),
            retry_max: reader.duration("projector.retry_max", milliseconds(100..=30_000)),
            rebuild_retention: reader
                .duration("projector.rebuild_retention", seconds(60..=366 * 24 * 3_600)),
            breaker: Breaker {
                streams: reader.integer("projector.storm_streams", 1..=1_000_000),
                window: reader.duration("projector.storm_window", seconds(1..=86_400)).as_secs(),
                percent: reader.integer("projector.storm_percent", 1..=100),
            },
            code: Registry::default(),
        };
        Ok((settings, reader.finish()?))
    }

    /// Reads the projections with these names, or all projections in the folder if `names` is empty.
    pub(crate) fn load(&self, names: &[String]) -> Result<Vec<Definition>, Failure> {
        read_model::load(&self.projections_dir, names, &self.code).map_err(|it| mistakes(&it))
    }

    /// The address of MySQL and the login.
    pub(crate) fn mysql(&self) -> Result<read_model::Options, Failure> {
        Ok(read_model::Options::parse(&self.mysql_url).map_err(ServerError::from)?)
    }

    /// The address of RabbitMQ and the login.
    pub(crate) fn broker(&self) -> Result<broker::Options, Failure> {
        Ok(broker::Options::parse(&self.rabbitmq_url, "projector").map_err(ServerError::from)?)
    }

    /// The address of PostgreSQL and the login.
    pub(crate) fn store(&self) -> Result<event_store::Options, Failure> {
        let options = event_store::Options::parse(&self.postgres_url, "projector")
            .map_err(ServerError::from)?;
        Ok(options.statement_limit(self.statement_timeout))
    }
}

/// One failure that lists all mistakes.
pub(crate) fn mistakes(faults: &[Fault]) -> Failure {
    let lines: Vec<_> = faults.iter().map(|fault| format!("  {fault}")).collect();
    let count = counted(faults.len(), "mistake", "mistakes");
    Failure::new(Exit::Data, anyhow::anyhow!("{count} in the projections:\n{}", lines.join("\n")))
}

fn seconds(range: RangeInclusive<u64>) -> RangeInclusive<Duration> {
    Duration::from_secs(*range.start())..=Duration::from_secs(*range.end())
}

fn milliseconds(range: RangeInclusive<u64>) -> RangeInclusive<Duration> {
    Duration::from_millis(*range.start())..=Duration::from_millis(*range.end())
}
