//! A TCP proxy that disturbs connections.

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

/// How many pieces a throttled connection forwards in a second.
const THROTTLED_PIECES: usize = 20;
/// The pause after each of them.
const THROTTLE_PAUSE: Duration = Duration::from_millis(50);

/// The treatment of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Forwards everything.
    Pass,
    /// Keeps connections open, accepts new ones, and forwards nothing.
    BlackHole,
    /// Forwards nothing in one direction.
    BlackHoleTowards(Side),
    /// Closes one direction of every connection. The receiving side reads the end of the stream.
    HalfClose(Side),
    /// Resets every existing and every new connection.
    Reset,
    /// Forwards everything, each piece after a delay.
    Latency(Duration),
    /// Forwards everything in pieces of this number of bytes.
    Slice(usize),
    /// Forwards this number of bytes per second, in each direction of a connection.
    Throttle(usize),
}

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The side that connected.
    Client,
    /// The side that the proxy connects to.
    Server,
}

/// A moment at which one connection is reset once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The client sends COMMIT to PostgreSQL or MySQL, and the server does not receive it.
    Commit,
    /// The server answers a COMMIT, and the client does not receive the answer.
    CommitAnswer,
    /// RabbitMQ confirms a message, and the client does not receive the confirm.
    Confirm,
}

impl Mode {
    fn stops(self, towards: Side) -> bool {
        self == Self::BlackHole || self == Self::BlackHoleTowards(towards)
    }
}

/// A proxy in front of a server.
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
    /// The number of swallowed answers to a COMMIT.
    swallowed: AtomicUsize,
    /// Notified of each confirm that passes.
    confirms: Notify,
}

impl Cuts {
    /// Disarms and returns the armed cut, if it is one of these.
    fn fire(&self, cuts: &[Cut]) -> Option<Cut> {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let cut = armed.take_if(|armed| cuts.contains(armed))?;
        self.fired.fetch_add(1, Ordering::Relaxed);
        Some(cut)
    }
}

impl Proxy {
    /// Starts a proxy in front of the server of a URL. Returns the URL through the proxy.
    ///
    /// # Panics
    ///
    /// When the URL has no host and port.
    pub async fn before(url: &str) -> (Self, String) {
        let mut through = Url::parse(url).expect("the URL is valid");
        let server = format!(
            "{}:{}",
            through.host_str().expect("the URL has a host"),
            through.port().expect("the URL has a port")
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("the port has an address");
        through.set_port(Some(address.port())).expect("the URL takes a port");
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let mut tasks = JoinSet::new();
        let cuts = Arc::<Cuts>::default();
        tasks.spawn(accept(listener, server, Arc::clone(&mode), Arc::clone(&cuts)));
        (Self { address, mode, cuts, tasks }, through.to_string())
    }

    /// Changes the treatment of all connections.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Resets the existing connections. New ones pass.
    pub fn cut(&self) {
        self.set(Mode::Reset);
        self.set(Mode::Pass);
    }

    /// Resets the next connection that reaches this moment.
    pub fn cut_at(&self, cut: Cut) {
        *self.cuts.armed.lock().unwrap_or_else(PoisonError::into_inner) = Some(cut);
    }

    /// Disarms the cut, if it has not happened.
    pub fn cut_nowhere(&self) {
        *self.cuts.armed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits until RabbitMQ confirms a message on any connection.
    pub async fn confirm(&self) {
        self.cuts.confirms.notified().await;
    }

    /// The number of cuts that have happened.
    pub fn cuts(&self) -> usize {
        self.cuts.fired.load(Ordering::Relaxed)
    }

    /// The number of commits whose answer the client did not receive.
    pub fn unknown_commits(&self) -> usize {
        self.cuts.swallowed.load(Ordering::Relaxed)
    }

    /// The address of the proxy.
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
    // Without linger, closing a socket resets the connection.
    client.set_zero_linger().expect("the socket option is set");
    if mode.wait_for(|mode| !mode.stops(Side::Server)).await.is_err()
        || *mode.borrow() == Mode::Reset
    {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    server.set_zero_linger().expect("the socket option is set");
    for socket in [&client, &server] {
        socket.set_nodelay(true).expect("the socket option is set");
    }
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    // `changed` must also report a mode that was set and set back.
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

/// Returns when the connection must be reset.
async fn reset(mut mode: watch::Receiver<Mode>) {
    let mut last = *mode.borrow();
    while mode.changed().await.is_ok() {
        let now = *mode.borrow_and_update();
        // `cut` sets Reset so briefly that this task may see only Pass after Pass.
        if now == Mode::Reset || (now == Mode::Pass && last == Mode::Pass) {
            return;
        }
        last = now;
    }
}

/// Returns when the direction must be closed.
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
    /// Whether the server received a COMMIT whose answer must be swallowed.
    committing: &'c AtomicBool,
}

impl Flow<'_> {
    /// Copies until one side closes, or the connection must be reset.
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
                    // The connection stays until one side closes it.
                    drop(to.shutdown().await);
                    return pending().await;
                }
            };
            let bytes = &buffer[..length];
            if self.mode.wait_for(|mode| !mode.stops(towards)).await.is_err() || self.cuts(bytes) {
                return;
            }
            let mode = *self.mode.borrow();
            let piece = match mode {
                Mode::Slice(piece) => piece,
                Mode::Throttle(rate) => rate / THROTTLED_PIECES + 1,
                _ => length,
            };
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
                if let Mode::Throttle(_) = mode {
                    sleep(THROTTLE_PAUSE).await;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// Whether the connection must be reset instead of forwarding these bytes.
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

/// Whether these bytes commit a transaction: a simple query to PostgreSQL, or a query to MySQL. The
/// isolation level READ COMMITTED contains the word and is not a commit.
fn is_commit(bytes: &[u8]) -> bool {
    bytes.ends_with(b"Q\0\0\0\x0bCOMMIT\0") || bytes.ends_with(b"\x07\0\0\0\x03COMMIT")
}

/// Whether these bytes contain a confirm: `basic.ack`, a method frame of 13 bytes.
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
