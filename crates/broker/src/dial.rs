//! Connecting such that it can be given up.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::ConnectionProperties;
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use tokio::time::timeout;

use crate::stream::{self, Mended};

/// Connects. Whoever waits no longer than `limit` and drops this leaves nothing behind.
///
/// lapin connects in a thread of its own, which waits for ever for a broker that accepts and then says
/// nothing. And lapin 4.12.3 never answers when the broker hangs up in the middle of the handshake. So a
/// limit is needed, and the socket is shut down when it is reached: that ends the thread.
pub(crate) async fn dial(
    uri: &AMQPUri,
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
                let address = (uri.authority.host.clone(), uri.authority.port);
                let resolve = tokio.to_socket_addrs(address);
                let stream = AsyncTcpStream::connect(&tokio, resolve).await?;
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
            connected.map(Mended::wrap).map_err(lapin::Error::from)
        },
        ConnectionProperties::default().with_connection_name(name.into()),
    );
    let connection = connection.await?;
    attempt.succeeded();
    Ok(connection)
}

/// An attempt to connect; dropped, it is given up.
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
            // One that is not connected any more needs no end.
            drop(socket.shutdown(Shutdown::Both));
        }
    }
}
