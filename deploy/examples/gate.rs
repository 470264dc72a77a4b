//! A workload for `workload.kind = "gate"` that acts only while its device owns: `gate http://127.0.0.1:7601`
//!
//! It runs on every device and follows the gRPC stream `quorate.v1.Ownership/WatchOwnership`. What it is told holds until a moment on the boot
//! clock, which is looked at before each act; nothing needs to arrive for it to stop. Replace [`act`]. An act that takes
//! long must end before that moment, or be one that the receiver refuses when it has seen a higher epoch.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints")]

use std::time::Duration;

use quorate::control::proto::{OwnershipState, WatchOwnershipRequest, ownership_client::OwnershipClient};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

/// `CLOCK_BOOTTIME` in nanoseconds.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Until the stream ends.
async fn listen(
    sidecar: &str,
    word: &watch::Sender<OwnershipState>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut client = OwnershipClient::connect(sidecar.to_owned()).await?;
    let mut words = client.watch_ownership(WatchOwnershipRequest {}).await?.into_inner();
    while let Some(state) = words.message().await? {
        word.send_replace(state);
    }
    Ok(())
}

/// What only one device of the site may do. Send the epoch along: the receiver refuses lower ones.
fn act(epoch: u64) {
    println!("{} {epoch}", now());
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let sidecar = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7601".to_owned());
    let (told, word) = watch::channel(OwnershipState::default());
    let listens = async {
        loop {
            if let Err(why) = listen(&sidecar, &told).await {
                // What was told last goes on counting; it ends by itself.
                eprintln!("gate: {why}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let acts = async {
        loop {
            let (epoch, until) = (word.borrow().epoch, word.borrow().until_boottime_ns);
            if now() < until {
                act(epoch);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::join!(listens, acts);
}
