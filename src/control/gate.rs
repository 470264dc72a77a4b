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

use super::socket::{LOOK, Socket};
use crate::status::{door::Handle, watch::tell, word::Word};

/// Programs that listen at once; one more is told [`FULL`].
const CLIENTS_MAX: usize = 64;
const FULL: &str = "standby 0 64 programs listen already, and no more are served\n";
/// Who does not take a line within this time is not listening.
const WRITE_TIME: Duration = Duration::from_secs(1);
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves until `stop`. What one client does wrong ends its own connection. If the socket's file is gone or another's, it is made anew; while
/// that fails, `tell_of` hears why. The file is removed at the end.
pub async fn serve(
    mut socket: Socket,
    door: Handle,
    tell_of: impl Fn(Option<String>),
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(CLIENTS_MAX));
    let mut clients = JoinSet::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            // Those that have ended are taken off the list as they end.
            Some(_) = clients.join_next() => continue,
            accepted = socket.accept() => accepted,
            _ = look.tick() => {
                match socket.mend().await {
                    Ok(false) => {}
                    Ok(true) => tell_of(None),
                    Err(e) => tell_of(Some(format!("the socket of the gate is gone: {e}"))),
                }
                continue;
            }
        };
        match (accepted, slots.clone().try_acquire_owned()) {
            (Ok(stream), Ok(slot)) => {
                let (told, shown) = (tell(door.permits(), door.clock(), slot, stop.clone()), door.clone());
                clients.spawn(speak(stream, told.map(move |(permit, _)| Word::of(&*shown, permit))));
            }
            // Who only reads the first word understands this one as well.
            (Ok(stream), Err(_)) => drop(stream.try_write(FULL.as_bytes())),
            (Err(e), _) => {
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
