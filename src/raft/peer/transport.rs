//! How bytes travel between members: connections that come in and connections that go out, as a seam.
//!
//! In the product these are TCP sockets; in a simulated site they are the simulator's. Everything above is the same.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

/// Anything that bytes can travel over.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Wire for T {}

/// One connection, whatever it is made of.
pub struct Connection {
    wire: Box<dyn Wire>,
    from: String,
}

impl Connection {
    /// A connection with the address to show for its other end.
    pub fn new(wire: impl Wire, from: impl Into<String>) -> Connection {
        Connection { wire: Box::new(wire), from: from.into() }
    }
}

/// Where a connection came from, for the status.
#[derive(Debug, Clone)]
pub struct From(pub String);

impl Connected for Connection {
    type ConnectInfo = From;
    fn connect_info(&self) -> From {
        From(self.from.clone())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }
}

/// Connections that come in.
pub type Incoming = Pin<Box<dyn Stream<Item = io::Result<Connection>> + Send>>;

/// Opens connections to `host:port`.
pub trait Dialer: Send + Sync + 'static {
    /// Opens one connection.
    fn dial(&self, address: String) -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>>;
}

/// A dialer behind a pointer.
pub type DialerHandle = Arc<dyn Dialer>;

/// Real TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpDialer;

/// How long the three-way handshake on a LAN may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

impl Dialer for TcpDialer {
    fn dial(&self, address: String) -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>> {
        Box::pin(async move {
            #[expect(clippy::disallowed_methods, reason = "this is the LAN's real dialer")]
            let stream = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(&address)).await??;
            stream.set_nodelay(true)?;
            Ok(Connection::new(stream, address))
        })
    }
}

/// The connections that a TCP listener accepts. An error of one connection does not end the stream.
pub fn tcp(listener: TcpListener) -> Incoming {
    let stream = futures_util::stream::unfold(listener, |listener| async {
        let accepted = loop {
            match listener.accept().await {
                Ok(accepted) => break Ok(accepted),
                // The other end gave up while it waited in the queue.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => break Err(e),
            }
        };
        let connection = match accepted {
            Ok((stream, from)) => {
                stream.set_nodelay(true).map(|()| Connection::new(stream, from.to_string()))
            }
            Err(e) => {
                // Out of file descriptors: wait for some to be closed instead of spinning.
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(e)
            }
        };
        Some((connection, listener))
    });
    Box::pin(stream)
}
