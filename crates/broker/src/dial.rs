//! Connects in a way that can be abandoned.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::ConnectionProperties;
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use tokio::time::timeout;

use crate::stream::{self, FixedStream};

/// Connects to one address of the host of `uri`. Dropping the future after `limit` ends the attempt completely.
///
/// lapin connects in a thread of its own, which waits indefinitely for a broker that accepts the
/// connection and then sends nothing. Furthermore, lapin 4.12.3 never reports that the broker closed the
/// connection during the handshake. The caller therefore needs a limit. Dropping the future shuts the
/// socket down, which ends the thread.
pub(crate) async fn dial(
    uri: &AMQPUri,
    end: SocketAddr,
    name: &str,
    limit: Duration,
) -> lapin::Result<lapin::Connection> {
    let attempt = Arc::<Attempt>::default();
    let weak = Arc::downgrade(&attempt);
    let tokio = lapin::runtime::default_runtime()?;
    let connection = lapin::Connection::connector(
        uri.clone(),
        stream::runtime(),
        async move |uri, _runtime| {
            let secured = async {
                let stream = AsyncTcpStream::connect(&tokio, end).await?;
                if let AsyncTcpStream::Plain(socket) = &stream {
                    let attempt = weak.upgrade().ok_or(io::ErrorKind::Interrupted)?;
                    attempt.opened(socket.get_ref())?;
                }
                match uri.scheme {
                    AMQPScheme::AMQP => Ok(stream),
                    AMQPScheme::AMQPS => {
                        let config = OwnedTLSConfig::default();
                        stream.into_tls(&uri.authority.host, config.as_ref()).await
                    }
                }
            };
            let connected = timeout(limit, secured).await.map_err(io::Error::from)?;
            connected.map(FixedStream::wrap).map_err(lapin::Error::from)
        },
        ConnectionProperties::default().with_connection_name(name.into()),
    );
    let connection = connection.await?;
    attempt.succeeded();
    Ok(connection)
}

/// An attempt to connect. Dropping it shuts its socket down.
#[derive(Default)]
struct Attempt {
    socket: Mutex<Option<TcpStream>>,
}

impl Attempt {
    fn opened(&self, socket: &impl AsFd) -> io::Result<()> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket.into());
        Ok(())
    }

    fn succeeded(&self) {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            // Fails only if the socket is no longer connected.
            drop(socket.shutdown(Shutdown::Both));
        }
    }
}
