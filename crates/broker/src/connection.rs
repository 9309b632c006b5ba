//! One connection to RabbitMQ.

use std::sync::Arc;
use std::time::Duration;

use lapin::types::ShortString;
use lapin::uri::AMQPUri;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;

use crate::dial::dial;
use crate::error::is_refusal;
use crate::{Consumer, Error, Publisher};

/// How long the broker may take to accept a connection: as long as RabbitMQ itself allows
/// (`handshake_timeout`).
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the broker may take to answer anything but a publish. A broker with a slow disk takes
/// seconds to declare a queue, and to ask it again would only be more work; a dead one is noticed by
/// the heartbeat.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(20);
/// How long the broker may take to say whether there is a queue. While a queue is being deleted, or its
/// leader elected, it may not answer at all; then it is asked again.
pub(crate) const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// A blocked broker never answers a close.
pub(crate) const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Seconds. A dead peer is noticed after twice as long; below 5 there are false alarms.
const HEARTBEAT: u16 = 10;

/// How to reach the broker.
#[derive(Clone)]
pub struct Options {
    uri: AMQPUri,
    name: String,
    address: String,
}

impl Options {
    /// Takes a URL such as `amqps://user:password@host:5671/vhost?heartbeat=10`.
    ///
    /// `name` is what the management page shows.
    ///
    /// # Errors
    ///
    /// [`Error::Url`] when the URL cannot be parsed.
    pub fn parse(url: &SecretString, name: &str) -> Result<Self, Error> {
        let mut uri: AMQPUri = url.expose_secret().parse().map_err(|_quotes_the_url| Error::Url)?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        let address = format!("{}:{} {}", uri.authority.host, uri.authority.port, uri.vhost);
        Ok(Self { uri, name: name.to_owned(), address })
    }

    /// Host, port and virtual host, for messages.
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// One connection to the broker.
pub struct Connection {
    inner: Arc<lapin::Connection>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    ///
    /// [`Error::Login`] when the broker refuses user, password or virtual host, otherwise
    /// [`Error::Unreachable`] or [`Error::Timeout`].
    pub async fn connect(options: &Options) -> Result<Self, Error> {
        let limit = CONNECT_LIMIT;
        let inner = timeout(limit, dial(&options.uri, &options.name, limit))
            .await
            .map_err(|_elapsed| Error::Timeout { operation: "connecting", limit })?
            .map_err(|source| {
                let address = options.address.clone();
                if is_refusal(&source) {
                    Error::Login { address, source }
                } else {
                    Error::Unreachable { address, source }
                }
            })?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether the connection is up.
    pub fn is_connected(&self) -> bool {
        self.inner.status().connected()
    }

    /// Whether the broker has stopped taking messages, because it is short of memory or disk.
    pub fn is_blocked(&self) -> bool {
        // lapin leaves a connection blocked that was lost meanwhile.
        self.is_connected() && self.inner.status().blocked()
    }

    /// A publisher to an exchange, on a channel of its own.
    ///
    /// # Errors
    ///
    /// When the broker does not open the channel.
    pub async fn publisher(
        &self,
        exchange: &str,
        confirm_limit: Duration,
    ) -> Result<Publisher, Error> {
        let exchange = short(exchange)?;
        Publisher::open(Arc::clone(&self.inner), exchange, confirm_limit).await
    }

    /// A consumer of a queue, on a channel of its own, with at most `prefetch` unsettled messages.
    ///
    /// Of several consumers of a queue with a single active one, that with the highest `priority` is
    /// it, as soon as the one before has settled what it has.
    ///
    /// # Errors
    ///
    /// When the queue does not exist, or the broker does not let us consume it.
    pub async fn consumer(
        &self,
        queue: &str,
        prefetch: u16,
        priority: i32,
    ) -> Result<Consumer, Error> {
        Consumer::start(self.channel().await?, queue, prefetch, priority).await
    }

    /// Says goodbye; gives up after 2 s. An answer means that the broker has taken in everything that
    /// was sent before.
    pub async fn close(&self) {
        // Whatever the answer, the connection is gone.
        drop(timeout(CLOSE_LIMIT, self.inner.close(200, "bye".into())).await);
    }

    pub(crate) async fn channel(&self) -> Result<lapin::Channel, Error> {
        open_channel(&self.inner).await
    }

    /// A channel to look for a queue.
    pub(crate) async fn look_channel(&self) -> Result<lapin::Channel, Error> {
        call_within(LOOK_LIMIT, "opening a channel", self.inner.create_channel()).await
    }
}

pub(crate) async fn open_channel(connection: &lapin::Connection) -> Result<lapin::Channel, Error> {
    call("opening a channel", connection.create_channel()).await
}

/// Awaits a call, but no longer than [`CALL_LIMIT`].
pub(crate) async fn call<T>(
    operation: &'static str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Error> {
    call_within(CALL_LIMIT, operation, call).await
}

/// Awaits a call, but no longer than `limit`.
pub(crate) async fn call_within<T>(
    limit: Duration,
    operation: &'static str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Error> {
    match timeout(limit, call).await {
        Ok(result) => result.map_err(|source| Error::Call { operation, source }),
        Err(_elapsed) => Err(Error::Timeout { operation, limit }),
    }
}

/// A name as AMQP has it.
pub(crate) fn short(name: &str) -> Result<ShortString, Error> {
    ShortString::try_new(name).map_err(|_too_long| Error::Name { name: name.to_owned() })
}
