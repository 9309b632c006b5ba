//! The relay's configuration.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use broker::TopicPattern;
use daemon::settings::{Errors, POSTGRESQL, RABBITMQ, Reader, Shown};
use daemon::{Exit, Failure, LogSettings};
use secrecy::{ExposeSecret, SecretString};

/// How much longer PostgreSQL waits for a silent claim than the relay waits for confirms.
const CLAIM_MARGIN: Duration = Duration::from_secs(2);

/// The relay's settings. `config/default.toml` describes each key.
#[derive(Clone)]
pub struct Settings {
    /// `postgres.url`
    pub postgres_url: SecretString,
    /// `postgres.listen_url`; empty means `postgres.url`
    pub listen_url: SecretString,
    /// `postgres.statement_timeout`
    pub statement_timeout: Duration,
    /// `rabbitmq.url`
    pub rabbitmq_url: SecretString,
    /// `rabbitmq.exchange`
    pub exchange: String,
    /// `log`
    pub log: LogSettings,
    /// `relay.http_listen`
    pub http_listen: SocketAddr,
    /// `relay.workers`
    pub workers: u16,
    /// `relay.lanes_per_claim`
    pub lanes_per_claim: u16,
    /// `relay.batch_size`
    pub batch_size: u32,
    /// `relay.batch_bytes`
    pub batch_bytes: u64,
    /// `relay.confirm_timeout`
    pub confirm_timeout: Duration,
    /// `relay.claim_timeout`
    pub claim_timeout: Duration,
    /// `relay.poll_min`
    pub poll_min: Duration,
    /// `relay.poll_max`
    pub poll_max: Duration,
    /// `relay.max_message_bytes`
    pub max_message_bytes: u64,
    /// `relay.retry_min`
    pub retry_min: Duration,
    /// `relay.retry_max`
    pub retry_max: Duration,
    /// `relay.reconnect_max`
    pub reconnect_max: Duration,
    /// `relay.max_attempts`
    pub max_attempts: u32,
    /// `relay.discard_unroutable`
    pub discard_unroutable: Vec<TopicPattern>,
    /// `relay.retention`
    pub retention: Duration,
    /// `relay.notify`
    pub notify: bool,
}

/// The servers whose URLs a command needs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Servers {
    /// PostgreSQL
    pub postgres: bool,
    /// RabbitMQ
    pub rabbitmq: bool,
}

impl Settings {
    /// Reads the configuration.
    ///
    /// # Errors
    ///
    /// Every error in it at once.
    pub fn read(mut reader: Reader, needed: Servers) -> Result<(Self, Vec<Shown>), Errors> {
        reader.ignore_section("mysql");
        reader.ignore_section("projector");
        let settings = Self {
            postgres_url: reader.secret_url("postgres.url", &POSTGRESQL, needed.postgres),
            listen_url: reader.secret_url("postgres.listen_url", &POSTGRESQL, false),
            statement_timeout: reader.duration("postgres.statement_timeout", seconds(1..=300)),
            rabbitmq_url: reader.secret_url("rabbitmq.url", &RABBITMQ, needed.rabbitmq),
            exchange: reader.text("rabbitmq.exchange"),
            log: LogSettings::read(&mut reader),
            http_listen: reader.address("relay.http_listen"),
            workers: reader.integer("relay.workers", 1..=64),
            lanes_per_claim: reader.integer("relay.lanes_per_claim", 1..=64),
            batch_size: reader.integer("relay.batch_size", 1..=10_000),
            batch_bytes: reader.integer("relay.batch_bytes", 1..=256 * 1024 * 1024),
            confirm_timeout: reader.duration("relay.confirm_timeout", seconds(1..=18)),
            claim_timeout: reader.duration("relay.claim_timeout", seconds(2..=19)),
            poll_min: reader.duration("relay.poll_min", milliseconds(1..=10_000)),
            poll_max: reader.duration("relay.poll_max", milliseconds(1..=60_000)),
            max_message_bytes: reader.integer("relay.max_message_bytes", 1..=16 * 1024 * 1024),
            retry_min: reader.duration("relay.retry_min", milliseconds(1..=60_000)),
            retry_max: reader.duration("relay.retry_max", milliseconds(1..=86_400_000)),
            reconnect_max: reader.duration("relay.reconnect_max", milliseconds(100..=30_000)),
            max_attempts: reader.integer("relay.max_attempts", 1..=1_000_000),
            discard_unroutable: reader.parsed_list(
                "relay.discard_unroutable",
                "a list of routing-key patterns such as audit.#",
            ),
            retention: reader.duration("relay.retention", seconds(0..=10 * 365 * 86_400)),
            notify: reader.choice("relay.notify", &[("true", true), ("false", false)]),
        };
        reader.require(
            &["relay.confirm_timeout", "relay.claim_timeout"],
            settings.confirm_timeout + CLAIM_MARGIN <= settings.claim_timeout,
            "relay.confirm_timeout must be shorter than relay.claim_timeout by at least 2s: \
             otherwise PostgreSQL ends a claim while the broker still confirms its events",
        );
        reader.require(
            &["postgres.listen_url", "relay.notify"],
            settings.notify || settings.listen_url.expose_secret().is_empty(),
            "postgres.listen_url is set, but relay.notify is false: set it to true, or remove the URL",
        );
        for (pair, ordered) in [
            (["relay.poll_min", "relay.poll_max"], settings.poll_min <= settings.poll_max),
            (["relay.retry_min", "relay.retry_max"], settings.retry_min <= settings.retry_max),
        ] {
            let [least, most] = pair;
            reader.require(&pair, ordered, &format!("{least} must not be longer than {most}"));
        }
        Ok((settings, reader.finish()?))
    }

    /// How to connect to PostgreSQL; `application_name` is shown in `pg_stat_activity`.
    ///
    /// # Errors
    ///
    /// When the URL cannot be used.
    pub(crate) fn store_options(
        &self,
        application_name: &str,
    ) -> Result<event_store::Options, Failure> {
        let options = event_store::Options::parse(&self.postgres_url, application_name)
            .map_err(|error| Failure::new(Exit::Configuration, error))?;
        Ok(options.statement_limit(self.statement_timeout).idle_limit(self.claim_timeout))
    }

    /// How the listener connects to PostgreSQL: directly, even if everything else uses a pooler.
    ///
    /// # Errors
    ///
    /// When the URL cannot be used.
    pub(crate) fn listen_options(&self) -> Result<event_store::Options, Failure> {
        let url = if self.listen_url.expose_secret().is_empty() {
            &self.postgres_url
        } else {
            &self.listen_url
        };
        event_store::Options::parse(url, "outbox-relay listener")
            .map_err(|error| Failure::new(Exit::Configuration, error))
    }

    /// How to connect to RabbitMQ. The name is also the `app_id` of every message.
    ///
    /// # Errors
    ///
    /// When the URL cannot be used.
    pub(crate) fn broker_options(&self) -> Result<broker::Options, Failure> {
        broker::Options::parse(&self.rabbitmq_url, "outbox-relay")
            .map_err(|error| Failure::new(Exit::Configuration, error))
    }
}

fn seconds(range: RangeInclusive<u64>) -> RangeInclusive<Duration> {
    Duration::from_secs(*range.start())..=Duration::from_secs(*range.end())
}

fn milliseconds(range: RangeInclusive<u64>) -> RangeInclusive<Duration> {
    Duration::from_millis(*range.start())..=Duration::from_millis(*range.end())
}
