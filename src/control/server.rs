//! Serves gRPC over the listeners that are handed in: TCP, a Unix socket, or both.
//!
//! A client can cost one of a fixed number of connections and, until it has spoken HTTP/2, only for a few seconds.
//! Messages and headers are small, so their limits are. What a connection does wrong ends that connection.
//! A socket whose file is gone, or is another's, is made anew.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::Connected};
use tonic_health::pb::health_server::HealthServer;

use super::{
    proto::{self, control_server::ControlServer, ownership_server::OwnershipServer},
    service::Service,
    socket::{LOOK, Socket},
};
use crate::{
    raft::peer::probation::{HTTP2_PREFACE, OnProbation, Proof},
    status::door::Handle,
};

/// More wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// Requests are a few hundred bytes.
const MESSAGE_MAX_BYTES: usize = 64 * 1024;
const STREAMS_PER_CONNECTION: u32 = 32;
/// A client that does not answer pings for this long together is gone, whatever TCP says.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIME: Duration = Duration::from_secs(5);
/// How long open calls may still run when the server leaves.
const GRACE: Duration = Duration::from_secs(2);
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Where to serve. Both absent: nothing is served.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For other machines or containers.
    pub tcp: Option<TcpListener>,
    /// For this device.
    pub socket: Option<Socket>,
}

/// Why serving ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The contract compiled into this binary cannot be read back.
    #[error("the descriptor for reflection cannot be read: {0}")]
    Descriptor(#[from] tonic_reflection::server::Error),
    /// The server failed as a whole.
    #[error("the gRPC server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves until `stop`; then streams end at once and calls within two seconds. The socket's file is removed.
///
/// # Errors
/// [`Error`]; errors of single connections end only them.
pub async fn serve(listeners: Listeners, door: Handle, stop: CancellationToken) -> Result<(), Error> {
    let service = Service::new(door, stop.clone());
    let reflect = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let router = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIME))
        .http2_max_header_list_size(16 * 1024)
        .http2_max_pending_accept_reset_streams(Some(20))
        .initial_connection_window_size(256 * 1024)
        .initial_stream_window_size(64 * 1024)
        .add_service(ControlServer::new(service.clone()).max_decoding_message_size(MESSAGE_MAX_BYTES))
        .add_service(OwnershipServer::new(service.clone()).max_decoding_message_size(MESSAGE_MAX_BYTES))
        .add_service(HealthServer::new(service).max_decoding_message_size(MESSAGE_MAX_BYTES))
        .add_service(reflect().build_v1()?)
        .add_service(reflect().build_v1alpha()?);
    let serving = router.serve_with_incoming_shutdown(incoming(listeners), stop.clone().cancelled_owned());
    let limit = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = serving => Ok(ended?),
        () = limit => Ok(()),
    }
}

fn incoming(listeners: Listeners) -> impl Stream<Item = Result<Connection, io::Error>> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let trouble = None;
    stream::unfold(
        (listeners, slots, look, trouble),
        |(mut listeners, slots, mut look, mut trouble)| async move {
            let slot = slots.clone().acquire_owned().await.ok()?;
            let io = loop {
                let accepted = tokio::select! {
                    accepted = accept(&listeners) => accepted,
                    _ = look.tick() => {
                        mend(&mut listeners, &mut trouble).await;
                        continue;
                    }
                };
                match accepted {
                    Ok(io) => break io,
                    Err(e) => {
                        tracing::debug!("a gRPC connection could not be accepted: {e}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            };
            let connection = OnProbation::new(io, Proof::Bytes(HTTP2_PREFACE), slot);
            Some((Ok(connection), (listeners, slots, look, trouble)))
        },
    )
}

/// Makes a lost socket anew. What stands in the way is told once.
async fn mend(listeners: &mut Listeners, trouble: &mut Option<String>) {
    let Some(socket) = &mut listeners.socket else { return };
    let now = socket.mend().await.err().map(|e| e.to_string());
    if let Some(why) = now.as_ref().filter(|_| now != *trouble) {
        tracing::warn!("nobody can connect to the control socket: {why}");
    }
    *trouble = now;
}

async fn accept(listeners: &Listeners) -> io::Result<Io> {
    let tcp = async {
        match &listeners.tcp {
            Some(tcp) => tcp.accept().await.map(|(stream, _)| stream),
            None => std::future::pending().await,
        }
    };
    let unix = async {
        match &listeners.socket {
            Some(socket) => socket.accept().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        stream = tcp => {
            let stream = stream?;
            stream.set_nodelay(true)?;
            Ok(Io::Tcp(stream))
        }
        stream = unix => Ok(Io::Unix(stream?)),
    }
}

#[derive(Debug)]
enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Io::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Io::Tcp(stream) => Pin::new(stream).poll_write(cx, data),
            Io::Unix(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Io::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Io::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Io::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A connection that must begin to speak soon, and gives its place back when it ends.
type Connection = OnProbation<Io, OwnedSemaphorePermit>;

impl Connected for Connection {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}
