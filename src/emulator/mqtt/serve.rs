//! A listener for MQTT over TLS: the hub's own, or a gateway's.
//!
//! Handshakes run beside each other with a time limit. No application protocol is agreed on in them: Microsoft's clients
//! name none on this port.

use std::{future::Future, io, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::link::{self, Backend};

const HANDSHAKE: Duration = Duration::from_secs(10);
/// The most connections at once. Beyond it a newcomer is turned away.
const CONNECTIONS_MAX: usize = 20_000;

/// Asked for each new connection: the token that cuts it, or `None` if nobody gets in now.
pub(in crate::emulator) type Gate = Box<dyn Fn() -> Option<CancellationToken> + Send + Sync>;

/// Serves until `stop` is cancelled.
pub(in crate::emulator) fn serve(
    listener: TcpListener,
    tls: &Arc<ServerConfig>,
    backend: Arc<dyn Backend>,
    gate: Gate,
    tasks: &TaskTracker,
    stop: CancellationToken,
) {
    let mut tls = ServerConfig::clone(tls);
    tls.alpn_protocols.clear();
    let tls = TlsAcceptor::from(Arc::new(tls));
    let of_links = tasks.clone();
    // Counts this listener's connections alone.
    let connections = TaskTracker::new();
    tasks.spawn(async move {
        accept(&listener, &stop, |tcp| {
            let Some(cut) = gate() else { return };
            if connections.len() >= CONNECTIONS_MAX {
                return;
            }
            let (tls, backend) = (tls.clone(), backend.clone());
            of_links.spawn(connections.track_future(one(tcp, tls, backend, cut)));
        })
        .await;
    });
}

/// Accepts connections until `stop` is cancelled.
async fn accept(listener: &TcpListener, stop: &CancellationToken, mut each: impl FnMut(TcpStream)) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, _)) => {
                let _no_delay = tcp.set_nodelay(true).is_ok();
                each(tcp);
            }
            // Out of file handles, most likely: give connections time to end.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn one(tcp: TcpStream, tls: TlsAcceptor, backend: Arc<dyn Backend>, cut: CancellationToken) {
    let Some(stream) = shaken(tls.accept(tcp), &cut).await else { return };
    link::run(stream, &backend, cut).await;
}

async fn shaken<T>(handshake: impl Future<Output = io::Result<T>>, cut: &CancellationToken) -> Option<T> {
    let result = tokio::select! {
        () = cut.cancelled() => return None,
        result = tokio::time::timeout(HANDSHAKE, handshake) => result,
    };
    match result {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(why)) => {
            tracing::debug!(%why, "TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!("TLS handshake took too long");
            None
        }
    }
}
