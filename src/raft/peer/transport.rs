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
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::probation::{OnProbation, Place, Places, Proof};

/// Open connections that came in. Eight other members need two each, and for a moment twice as many.
const CONNECTIONS_MAX: usize = 64;
/// How many of them may come from one address: all members, should the network hide them behind one.
const CONNECTIONS_EACH: usize = 32;

/// Anything that bytes can travel over.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Wire for T {}

/// One connection, whatever it is made of.
pub type Connection = OnProbation<Box<dyn Wire>, Guest>;

/// Whose connection it is, and the place that it takes if it came in.
#[derive(Debug)]
pub struct Guest {
    from: From,
    _place: Option<Place>,
}

impl Connection {
    /// A connection with the address to show for its other end. It may take its time.
    pub fn open(wire: impl Wire, from: impl Into<String>) -> Connection {
        let from = From { address: from.into(), recognised: Arc::default() };
        OnProbation::new(Box::new(wire), Proof::None, Guest { from, _place: None })
    }

    /// A connection that ends unless a member is recognised on it in time.
    fn accepted(wire: impl Wire, from: String, place: Place) -> Connection {
        let recognised = Arc::<AtomicBool>::default();
        let from = From { address: from, recognised: recognised.clone() };
        OnProbation::new(Box::new(wire), Proof::Recognised(recognised), Guest { from, _place: Some(place) })
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
        self.place().from.clone()
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
            Ok(Connection::open(stream, address))
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
                break Connection::accepted(stream, from.to_string(), place);
            }
        };
        Some((Ok(connection), (listener, places)))
    });
    Box::pin(stream)
}
