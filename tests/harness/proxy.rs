//! A TCP proxy that disturbs.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use url::Url;

/// What the proxy does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Lets everything through.
    Pass,
    /// Keeps connections open, takes new ones, and lets nothing through.
    BlackHole,
    /// Lets nothing through in one direction.
    BlackHoleTowards(Side),
    /// Ends one direction of every connection: that side is told that nothing more comes.
    HalfClose(Side),
    /// Resets every connection, and each new one.
    Reset,
    /// Lets everything through, each piece after a while.
    Latency(Duration),
    /// Lets everything through, in pieces of so many bytes.
    Slice(usize),
}

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Whoever connected.
    Client,
    /// Whom the proxy stands before.
    Server,
}

/// A moment at which one connection is reset, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The client sends COMMIT to PostgreSQL or MySQL; the server does not get it.
    Commit,
    /// The server answers a COMMIT; the client does not get to know.
    CommitAnswer,
    /// RabbitMQ confirms a message; the client does not get to know.
    Confirm,
}

impl Mode {
    fn stops(self, towards: Side) -> bool {
        self == Self::BlackHole || self == Self::BlackHoleTowards(towards)
    }
}

/// Stands before a server.
pub struct Proxy {
    address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    cuts: Arc<Cuts>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Cuts {
    armed: Mutex<Option<Cut>>,
    fired: AtomicUsize,
    /// Answers to a COMMIT that were swallowed.
    swallowed: AtomicUsize,
    /// Told of each confirm that comes through.
    confirms: Notify,
}

impl Cuts {
    /// Whether the armed cut is one of these; it is disarmed then.
    fn fire(&self, cuts: &[Cut]) -> Option<Cut> {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let cut = armed.take_if(|armed| cuts.contains(armed))?;
        self.fired.fetch_add(1, Ordering::Relaxed);
        Some(cut)
    }
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
        let cuts = Arc::<Cuts>::default();
        tasks.spawn(accept(listener, server, Arc::clone(&mode), Arc::clone(&cuts)));
        (Self { address, mode, cuts, tasks }, through.to_string())
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

    /// Resets the next connection that comes to such a moment.
    pub fn cut_at(&self, cut: Cut) {
        *self.cuts.armed.lock().unwrap_or_else(PoisonError::into_inner) = Some(cut);
    }

    /// Lets the moment pass, if it has not come.
    pub fn cut_nowhere(&self) {
        *self.cuts.armed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits until RabbitMQ confirms a message to somebody.
    pub async fn confirm(&self) {
        self.cuts.confirms.notified().await;
    }

    /// How often such a moment came.
    pub fn cuts(&self) -> usize {
        self.cuts.fired.load(Ordering::Relaxed)
    }

    /// How many transactions were committed of which the client does not know.
    pub fn unknown_commits(&self) -> usize {
        self.cuts.swallowed.load(Ordering::Relaxed)
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

async fn accept(
    listener: TcpListener,
    server: String,
    mode: Arc<watch::Sender<Mode>>,
    cuts: Arc<Cuts>,
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(connect(client, server.clone(), mode.subscribe(), Arc::clone(&cuts)));
        while connections.try_join_next().is_some() {}
    }
}

async fn connect(
    client: TcpStream,
    server: String,
    mut mode: watch::Receiver<Mode>,
    cuts: Arc<Cuts>,
) {
    // Closing with something unsent is a reset.
    client.set_zero_linger().expect("a socket option");
    if mode.wait_for(|mode| !mode.stops(Side::Server)).await.is_err()
        || *mode.borrow() == Mode::Reset
    {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    server.set_zero_linger().expect("a socket option");
    for socket in [&client, &server] {
        socket.set_nodelay(true).expect("a socket option");
    }
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    // `changed` must also see a mode that was set and set back.
    mode.mark_unchanged();
    let committing = AtomicBool::new(false);
    let requests =
        Flow { towards: Side::Server, mode: mode.clone(), cuts: &cuts, committing: &committing };
    let answers =
        Flow { towards: Side::Client, mode: mode.clone(), cuts: &cuts, committing: &committing };
    tokio::select! {
        () = requests.copy(from_client, to_server) => {}
        () = answers.copy(from_server, to_client) => {}
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

/// Ends when a direction is to be closed.
async fn half_closed(mode: &mut watch::Receiver<Mode>, towards: Side) {
    if mode.wait_for(|mode| *mode == Mode::HalfClose(towards)).await.is_err() {
        pending::<()>().await;
    }
}

/// One direction of a connection.
struct Flow<'c> {
    towards: Side,
    mode: watch::Receiver<Mode>,
    cuts: &'c Cuts,
    /// A COMMIT went to the server whose answer is to be swallowed.
    committing: &'c AtomicBool,
}

impl Flow<'_> {
    /// Copies until one end is gone, or the connection is to be reset.
    async fn copy(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 1 << 16];
        let towards = self.towards;
        loop {
            let length = tokio::select! {
                read = from.read(&mut buffer) => match read {
                    Ok(length @ 1..) => length,
                    _ => return,
                },
                () = half_closed(&mut self.mode, towards) => {
                    // Until the other end, or whoever was told, ends the connection.
                    drop(to.shutdown().await);
                    return pending().await;
                }
            };
            let bytes = &buffer[..length];
            if self.mode.wait_for(|mode| !mode.stops(towards)).await.is_err() || self.cuts(bytes) {
                return;
            }
            let mode = *self.mode.borrow();
            let piece = if let Mode::Slice(piece) = mode { piece } else { length };
            if let Mode::Latency(latency) = mode {
                sleep(latency).await;
            }
            for piece in bytes.chunks(piece) {
                if !matches!(
                    timeout(Duration::from_mins(10), to.write_all(piece)).await,
                    Ok(Ok(()))
                ) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// Whether the connection is to be reset instead of letting these bytes through.
    fn cuts(&self, bytes: &[u8]) -> bool {
        match self.towards {
            Side::Server if is_commit(bytes) => {
                match self.cuts.fire(&[Cut::Commit, Cut::CommitAnswer]) {
                    Some(Cut::CommitAnswer) => {
                        self.committing.store(true, Ordering::Relaxed);
                        false
                    }
                    cut => cut.is_some(),
                }
            }
            Side::Client if self.committing.load(Ordering::Relaxed) => {
                self.cuts.swallowed.fetch_add(1, Ordering::Relaxed);
                true
            }
            Side::Client if has_confirm(bytes) => {
                self.cuts.confirms.notify_waiters();
                self.cuts.fire(&[Cut::Confirm]).is_some()
            }
            _ => false,
        }
    }
}

/// Whether a client ends a transaction with this: a simple query to PostgreSQL, or a query to MySQL. An
/// isolation level, READ COMMITTED, has the word too.
fn is_commit(bytes: &[u8]) -> bool {
    bytes.ends_with(b"Q\0\0\0\x0bCOMMIT\0") || bytes.ends_with(b"\x07\0\0\0\x03COMMIT")
}

/// Whether RabbitMQ confirms messages with this: a method frame with 13 bytes, `basic.ack`.
fn has_confirm(bytes: &[u8]) -> bool {
    bytes.windows(11).any(|frame| frame[0] == 1 && frame[3..] == [0, 0, 0, 13, 0, 60, 0, 80])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_transaction_is_a_commit() {
        assert!(is_commit(b"Q\0\0\0\x0bCOMMIT\0"));
        assert!(is_commit(b"\x07\0\0\0\x03COMMIT"));
        assert!(!is_commit(b"Q\0\0\0\x25BEGIN ISOLATION LEVEL READ COMMITTED\0"));
        assert!(!is_commit(b"\x10\0\0\0\x03SET 'READ-COMMITTED'"));
    }
}
