//! One connection to RabbitMQ.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lapin::types::ShortString;
use lapin::uri::AMQPUri;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::dial::dial;
use crate::error::is_refusal;
use crate::{Consumer, Error, Publisher};

/// How long connecting may take. RabbitMQ has the same limit (`handshake_timeout`).
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the addresses of a host may take to be looked up.
const NAME_LIMIT: Duration = Duration::from_secs(3);
/// How long the broker may take to answer any call but a publish. A broker with a slow disk takes
/// seconds to declare a queue, and a retry would only add work. A dead broker is detected by the
/// heartbeat.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(20);
/// How long the broker may take to answer whether a queue exists. It may not answer at all while the
/// queue is being deleted or its leader elected; then the caller retries.
pub(crate) const CHECK_LIMIT: Duration = Duration::from_secs(5);
/// How long the broker may take to answer a close. A blocked broker never answers.
pub(crate) const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// In seconds. A dead peer is detected after twice as long. Values below 5 cause false alarms.
const HEARTBEAT: u16 = 10;

/// How to connect to the broker.
#[derive(Clone)]
pub struct Options {
    /// The same with each host of the cluster.
    uris: Vec<AMQPUri>,
    name: String,
    address: String,
}

impl Options {
    /// Takes a URL such as `amqps://user:password@host:5671/vhost?heartbeat=10`. It may name several hosts,
    /// separated by commas. Each connection goes to one of them, or to one of the addresses of its name, at random.
    ///
    /// `name` is the name of the program. The management page shows it as the name of the connection,
    /// and every published message carries it as `app_id`.
    ///
    /// # Errors
    ///
    /// [`Error::Url`] when the URL cannot be parsed.
    pub fn parse(url: &SecretString, name: &str) -> Result<Self, Error> {
        let uri = |url: String| {
            let mut uri: AMQPUri = url.parse().map_err(|_quotes_the_url| Error::Url)?;
            uri.query.heartbeat.get_or_insert(HEARTBEAT);
            Ok(uri)
        };
        let uris = hosts::each(url.expose_secret()).into_iter().map(uri);
        let uris = uris.collect::<Result<Vec<_>, Error>>()?;
        let address = uris.iter().map(address).collect::<Vec<_>>().join(", ");
        Ok(Self { uris, name: name.to_owned(), address })
    }

    /// Host, port and virtual host of each host, for messages.
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// One connection to the broker.
pub struct Connection {
    inner: Arc<lapin::Connection>,
    /// The `app_id` of published messages.
    app_id: ShortString,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    ///
    /// [`Error::Login`] when the broker refuses user, password or virtual host, [`Error::Name`] when the
    /// program's name is too long, otherwise [`Error::Unreachable`] or [`Error::Timeout`].
    pub async fn connect(options: &Options) -> Result<Self, Error> {
        let app_id = short(&options.name)?;
        let ends = ends(&options.uris).await?;
        let mut failed = Error::Url;
        for ((uri, end), limit) in hosts::shuffled(&ends, CONNECT_LIMIT) {
            match timeout(limit, dial(uri, *end, &options.name, limit)).await {
                Ok(Ok(inner)) => return Ok(Self { inner: Arc::new(inner), app_id }),
                Ok(Err(source)) => failed = refused(uri, source),
                Err(_elapsed) => failed = Error::Timeout { operation: "connecting", limit },
            }
        }
        Err(failed)
    }

    /// Whether the connection is up.
    pub fn is_connected(&self) -> bool {
        self.inner.status().connected()
    }

    /// Whether the broker has blocked the connection: it takes no messages, because it is short of
    /// memory or disk.
    pub fn is_blocked(&self) -> bool {
        // lapin keeps reporting a blocked connection as blocked after it was lost.
        self.is_connected() && self.inner.status().blocked()
    }

    /// Opens a publisher to an exchange, on a channel of its own. The broker may take up to
    /// `confirm_limit` to confirm a batch.
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
        let app_id = self.app_id.clone();
        Publisher::open(Arc::clone(&self.inner), exchange, app_id, confirm_limit).await
    }

    /// Starts a consumer of a queue, on a channel of its own, with at most `prefetch` unsettled
    /// deliveries.
    ///
    /// If the queue has a single active consumer, the others wait in the order in which they started. The
    /// first of them becomes active when the active one has ended.
    ///
    /// # Errors
    ///
    /// When the queue does not exist, or the login may not read it.
    pub async fn consumer(&self, queue: &str, prefetch: u16) -> Result<Consumer, Error> {
        Consumer::start(self.channel().await?, queue, prefetch).await
    }

    /// Closes the connection, and waits up to 2 s for the answer. After an answer, the broker has
    /// processed everything that was sent before.
    pub async fn close(&self) {
        // The connection ends whatever the broker answers.
        drop(timeout(CLOSE_LIMIT, self.inner.close(200, "bye".into())).await);
    }

    pub(crate) async fn channel(&self) -> Result<lapin::Channel, Error> {
        open_channel(&self.inner).await
    }

    /// Opens a channel on which to check whether a queue exists.
    pub(crate) async fn check_channel(&self) -> Result<lapin::Channel, Error> {
        call_within(CHECK_LIMIT, "opening a channel", self.inner.create_channel()).await
    }
}

/// Host, port and virtual host.
fn address(uri: &AMQPUri) -> String {
    format!("{}:{} {}", uri.authority.host, uri.authority.port, uri.vhost)
}

/// All addresses of all hosts. A host whose name is unknown is left out if another one is known.
async fn ends(uris: &[AMQPUri]) -> Result<Vec<(&AMQPUri, SocketAddr)>, Error> {
    let (mut ends, mut failure) = (Vec::new(), None);
    for uri in uris {
        let name = (&*uri.authority.host, uri.authority.port);
        match call_within(NAME_LIMIT, "looking up a host", async {
            lookup_host(name).await.map_err(lapin::Error::from)
        })
        .await
        {
            Ok(found) => ends.extend(found.map(|end| (uri, end))),
            Err(Error::Call { source, .. }) => failure = Some(refused(uri, source)),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if ends.is_empty() => Err(error),
        _ => Ok(ends),
    }
}

fn refused(uri: &AMQPUri, source: lapin::Error) -> Error {
    let address = address(uri);
    if is_refusal(&source) {
        Error::Login { address, source }
    } else {
        Error::Unreachable { address, source }
    }
}

pub(crate) async fn open_channel(connection: &lapin::Connection) -> Result<lapin::Channel, Error> {
    call("opening a channel", connection.create_channel()).await
}

/// Awaits a call for at most [`CALL_LIMIT`].
pub(crate) async fn call<T>(
    operation: &'static str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Error> {
    call_within(CALL_LIMIT, operation, call).await
}

/// Awaits a call for at most `limit`.
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

/// Converts a name to an AMQP short string.
pub(crate) fn short(name: &str) -> Result<ShortString, Error> {
    ShortString::try_new(name).map_err(|_too_long| Error::Name { name: name.to_owned() })
}
