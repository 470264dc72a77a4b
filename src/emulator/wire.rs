//! Listeners for HTTPS: TLS, and connections that can be cut at any moment.
//!
//! Handshakes run beside each other with a time limit, so a half-open client holds up nobody. Each connection carries
//! a token; once that is cancelled, neither another byte goes out nor in, which is how an outage and a lost answer look
//! from the other side.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{State, mqtt::Gate};

const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves `router` until the state's stop token is cancelled. `gate` lets connections in.
pub(super) fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    gate: Gate,
    router: Router,
    state: &Arc<State>,
) {
    let address = listener.local_addr();
    let (ready, connections) = mpsc::channel(16);
    state.tasks.spawn(accept(listener, TlsAcceptor::from(tls), gate, ready, state.clone()));
    let listener = Ready { connections, address: address.ok() };
    let service = router.into_make_service_with_connect_info::<Peer>();
    let stop = state.stop.clone();
    state.tasks.spawn(async move {
        let served = axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await;
        tracing::debug!(?served, "an emulated service stopped serving");
    });
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    gate: Gate,
    ready: mpsc::Sender<(Wire, SocketAddr)>,
    state: Arc<State>,
) {
    loop {
        let accepted = tokio::select! {
            () = state.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, peer)) = accepted else {
            // Out of file handles, most likely: give connections time to end.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Some(cut) = gate() else { continue };
        let _no_delay = tcp.set_nodelay(true).is_ok();
        let (tls, ready) = (tls.clone(), ready.clone());
        state.tasks.spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE, tls.accept(tcp));
            tokio::select! {
                () = cut.cancelled() => {}
                result = handshake => match result {
                    Ok(Ok(stream)) => {
                        let _taken = ready.send((Wire::new(stream, cut), peer)).await.is_ok();
                    }
                    Ok(Err(why)) => tracing::debug!(%peer, %why, "TLS handshake failed"),
                    Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
                }
            }
        });
    }
}

/// Connections that are ready to be spoken on.
struct Ready {
    connections: mpsc::Receiver<(Wire, SocketAddr)>,
    address: Option<SocketAddr>,
}

impl Listener for Ready {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        match self.connections.recv().await {
            Some(connection) => connection,
            // The accepting task has ended, so the server is about to be told to stop.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.address.ok_or_else(|| io::Error::other("the listener had no address"))
    }
}

/// A handle on the connection that a request came in on.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    cut: CancellationToken,
}

impl Peer {
    /// Cuts the connection: what has not gone out yet never will.
    pub(super) fn cut(&self) {
        self.cut.cancel();
    }
}

impl Connected<IncomingStream<'_, Ready>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Ready>) -> Peer {
        Peer { cut: stream.io().cut.clone() }
    }
}

/// A connection that can be cut.
struct Wire {
    stream: TlsStream<TcpStream>,
    cut: CancellationToken,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Wire {
    fn new(stream: TlsStream<TcpStream>, cut: CancellationToken) -> Wire {
        Wire { stream, cancelled: Box::pin(cut.clone().cancelled_owned()), cut }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.cancelled.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
