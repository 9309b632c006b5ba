//! The connection as lapin reads it: its frames are mended.

use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::Stream;
use lapin::AsyncTcpStream;

use crate::frames::Frames;

type Socket = <Tokio as Reactor>::TcpStream;

/// tokio, but for the kind of its connections: lapin takes none but those of its runtime.
pub(crate) fn runtime() -> Runtime<RuntimeParts<Tokio, Mending>> {
    Runtime::new(RuntimeParts::new(Tokio::current(), Mending(Tokio::current())))
}

/// A connection, with or without TLS, that gives mended frames.
pub(crate) struct Mended {
    inner: AsyncTcpStream<Socket>,
    frames: Frames,
}

impl Mended {
    /// As lapin takes it; TLS is inside.
    pub(crate) fn wrap(inner: AsyncTcpStream<Socket>) -> AsyncTcpStream<Self> {
        AsyncTcpStream::Plain(Self { inner, frames: Frames::default() })
    }
}

impl AsyncRead for Mended {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { inner, frames } = &mut *self;
        loop {
            let given = frames.give(buffer);
            if given > 0 || buffer.is_empty() {
                return Poll::Ready(Ok(given));
            }
            let length = ready!(Pin::new(&mut *inner).poll_read(context, frames.room()))?;
            frames.received(length);
            if length == 0 {
                return Poll::Ready(Ok(frames.give(buffer)));
            }
        }
    }
}

impl AsyncWrite for Mended {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

/// The reactor of tokio, for connections that are mended.
#[derive(Clone, Debug)]
pub(crate) struct Mending(Tokio);

impl Reactor for Mending {
    type TcpStream = Mended;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Mended>> + Send + 'static {
        let connect = self.0.tcp_connect_addr(address);
        async {
            let inner = AsyncTcpStream::Plain(connect.await?);
            Ok(Mended { inner, frames: Frames::default() })
        }
    }
}
