//! The gate: a workload that runs on every device asks here whether it may act, over a Unix socket, a line at a time.
//!
//! For programs that have neither gRPC nor HTTP. Each line is a [`Word`]; the first comes at once. It deliberately takes no orders:
//! whatever a client writes is thrown away.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::socket::Socket;
use crate::status::{door::Handle, watch::tell, word::Word};

/// Programs that listen at once; more wait in the kernel's queue.
const CLIENTS_MAX: usize = 64;
/// Who does not take a line within this time is not listening.
const WRITE_TIME: Duration = Duration::from_secs(1);
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves until `stop`. What one client does wrong ends its own connection. The socket's file is removed at the end.
pub async fn serve(socket: Socket, door: Handle, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CLIENTS_MAX));
    let mut clients = JoinSet::new();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            // Those that have ended are taken off the list as they end.
            Some(_) = clients.join_next() => continue,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                let (told, shown) = (tell(door.permits(), door.clock(), slot, stop.clone()), door.clone());
                clients.spawn(speak(stream, told.map(move |(permit, now)| Word::of(&*shown, permit, now))));
            }
            Err(e) => {
                tracing::debug!("a client of the gate could not be accepted: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(socket);
    while clients.join_next().await.is_some() {}
}

/// Until one side ends it.
async fn speak(stream: UnixStream, words: impl Stream<Item = Word>) {
    let (mut from, mut to) = stream.into_split();
    let mut thrown_away = [0; 256];
    tokio::pin!(words);
    loop {
        tokio::select! {
            biased;
            word = words.next() => {
                let Some(word) = word else { return };
                let line = word.line();
                let written = tokio::time::timeout(WRITE_TIME, to.write_all(line.as_bytes())).await;
                if !matches!(written, Ok(Ok(()))) {
                    return;
                }
            }
            read = from.read(&mut thrown_away) => if matches!(read, Ok(0) | Err(_)) {
                return;
            },
        }
    }
}
