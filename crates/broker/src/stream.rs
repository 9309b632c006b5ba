//! The connection that lapin reads from, which fixes its frames.

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

/// tokio with connections of type [`FixedStream`]: lapin accepts only connections of its own runtime.
pub(crate) fn runtime() -> Runtime<RuntimeParts<Tokio, FixingReactor>> {
    Runtime::new(RuntimeParts::new(Tokio::current(), FixingReactor(Tokio::current())))
}

/// A connection, with or without TLS, that returns fixed frames.
pub(crate) struct FixedStream {
    inner: AsyncTcpStream<Socket>,
    frames: Frames,
}

impl FixedStream {
    /// Wraps a connection for lapin, which sees a plain one: TLS is inside.
    pub(crate) fn wrap(inner: AsyncTcpStream<Socket>) -> AsyncTcpStream<Self> {
        AsyncTcpStream::Plain(Self { inner, frames: Frames::default() })
    }
}

impl AsyncRead for FixedStream {
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

impl AsyncWrite for FixedStream {
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

/// The reactor of tokio, with connections of type [`FixedStream`].
#[derive(Clone, Debug)]
pub(crate) struct FixingReactor(Tokio);

impl Reactor for FixingReactor {
    type TcpStream = FixedStream;
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
    ) -> impl Future<Output = io::Result<FixedStream>> + Send + 'static {
        let connect = self.0.tcp_connect_addr(address);
        async {
            let inner = AsyncTcpStream::Plain(connect.await?);
            Ok(FixedStream { inner, frames: Frames::default() })
        }
    }
}
