//! How bytes travel between members: connections that come in and connections that go out, as a seam.
//!
//! In the product these are TCP sockets; in a simulated site they are the simulator's. Everything above is the same.
//!
//! A stranger who connects costs one of a few places for a few seconds: a connection on which no member has been
//! recognised by then ends (see `probation.rs`).

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::probation::{OnProbation, Places, Proof};

/// Open connections that came in. Eight other members need one each, and for a moment a second one.
const CONNECTIONS_MAX: usize = 64;
/// How many of them may come from one address: all members, should the network hide them behind one.
const CONNECTIONS_EACH: usize = 32;

/// Anything that bytes can travel over.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Wire for T {}

/// One connection, whatever it is made of.
pub struct Connection {
    wire: Box<dyn Wire>,
    from: From,
}

impl Connection {
    /// A connection with the address to show for its other end.
    pub fn new(wire: impl Wire, from: impl Into<String>) -> Connection {
        Connection { wire: Box::new(wire), from: From { address: from.into(), recognised: Arc::default() } }
    }

    /// A connection that ends unless a member is recognised on it in time.
    fn on_probation<P: Send + Unpin + 'static>(wire: impl Wire, from: String, place: P) -> Connection {
        let recognised = Arc::<AtomicBool>::default();
        let wire = OnProbation::new(wire, Proof::Recognised(recognised.clone()), place);
        Connection { wire: Box::new(wire), from: From { address: from, recognised } }
    }
}

/// Where a connection came from.
#[derive(Debug, Clone)]
pub struct From {
    /// The address, for the status.
    pub address: String,
    /// To be set once a member was recognised on it.
    pub recognised: Arc<AtomicBool>,
}

impl Connected for Connection {
    type ConnectInfo = From;
    fn connect_info(&self) -> From {
        self.from.clone()
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

/// The connections that a TCP listener accepts. An error of one connection does not end the stream. What is one too
/// many is closed at once, because a member that waits in a queue of strangers is worse off than one that tries again.
pub fn tcp(listener: TcpListener) -> Incoming {
    let places = Places::new(CONNECTIONS_MAX, CONNECTIONS_EACH);
    let stream = futures_util::stream::unfold((listener, places), |(listener, places)| async {
        let connection = loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                // The other end gave up while it waited in the queue.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(e) => {
                    tracing::debug!("a member's connection could not be accepted: {e}");
                    // Out of file descriptors: wait for some to be closed instead of spinning.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(place) = places.take(from.ip()) else {
                tracing::debug!(%from, "too many connections from other members; one more was closed");
                continue;
            };
            if stream.set_nodelay(true).is_ok() {
                break Connection::on_probation(stream, from.to_string(), place);
            }
        };
        Some((Ok(connection), (listener, places)))
    });
    Box::pin(stream)
}
