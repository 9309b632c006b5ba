//! A TCP proxy that disturbs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use url::Url;

/// What the proxy does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Lets everything through.
    Pass,
    /// Keeps connections open, takes new ones, and lets nothing through.
    BlackHole,
    /// Resets every connection, and each new one.
    Reset,
}

/// Stands before a server.
pub struct Proxy {
    address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts a proxy before the server of a URL, and gives the URL that leads through it.
    ///
    /// # Panics
    ///
    /// When the URL has no host and port.
    pub async fn before(url: &str) -> (Self, String) {
        let mut through = Url::parse(url).expect("a URL");
        let server =
            format!("{}:{}", through.host_str().expect("a host"), through.port().expect("a port"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        through.set_port(Some(address.port())).expect("a port");
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, Arc::clone(&mode)));
        (Self { address, mode, tasks }, through.to_string())
    }

    /// Changes what happens to all connections.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Resets the connections there are; new ones pass.
    pub fn cut(&self) {
        self.set(Mode::Reset);
        self.set(Mode::Pass);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

async fn accept(listener: TcpListener, server: String, mode: Arc<watch::Sender<Mode>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(connect(client, server.clone(), mode.subscribe()));
        while connections.try_join_next().is_some() {}
    }
}

async fn connect(client: TcpStream, server: String, mut mode: watch::Receiver<Mode>) {
    // Closing with something unsent is a reset.
    client.set_zero_linger().expect("a socket option");
    if mode.wait_for(|mode| *mode != Mode::BlackHole).await.is_err()
        || *mode.borrow() == Mode::Reset
    {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    server.set_zero_linger().expect("a socket option");
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    // `changed` must also see a mode that was set and set back.
    mode.mark_unchanged();
    tokio::select! {
        () = copy(from_client, to_server, mode.clone()) => {}
        () = copy(from_server, to_client, mode.clone()) => {}
        () = reset(mode) => {}
    }
}

/// Ends when connections are to be reset.
async fn reset(mut mode: watch::Receiver<Mode>) {
    let mut last = *mode.borrow();
    while mode.changed().await.is_ok() {
        let now = *mode.borrow_and_update();
        // `cut` goes through Reset so fast that only Pass is seen, after Pass.
        if now == Mode::Reset || (now == Mode::Pass && last == Mode::Pass) {
            return;
        }
        last = now;
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        if mode.wait_for(|mode| *mode != Mode::BlackHole).await.is_err() {
            return;
        }
        let write = to.write_all(&buffer[..length]);
        let written = tokio::time::timeout(Duration::from_mins(10), write).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}
