//! Measures what a timing rests on, for some seconds, all at the same time as it will be later.
//!
//! A sidecar that runs on the same device is not disturbed: the writes go to files of their own in its folder, a few
//! dozen a second, and members only see connections that are opened and closed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use super::verdict::Spread;
use crate::{
    clock::{BootClock, Clock, Moment, sleep_until},
    raft::peer::transport::Dialer,
    site::Member,
};

/// Between two durable writes.
const WRITE_EVERY: Duration = Duration::from_millis(25);
/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(2);
/// Between two connections to one member.
const DIAL_EVERY: Duration = Duration::from_millis(200);

/// Two files next to the store's. They are removed again, also by the next check after one that was killed.
pub(super) struct Scratch {
    log: (PathBuf, File),
    mark: (PathBuf, File),
}

impl Scratch {
    /// Begins in `folder`.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn open(folder: &Path) -> io::Result<Scratch> {
        let open = |name: &str| {
            let path = folder.join(name);
            let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
            Ok::<_, io::Error>((path, file))
        };
        Ok(Scratch { log: open("check-log.tmp")?, mark: open("check-mark.tmp")? })
    }

    /// What the store does for one vote or entry: something is appended, then something is overwritten, each for good.
    fn write(&mut self) -> io::Result<Duration> {
        let begun = BootClock.now();
        self.log.1.write_all(&[0x51; 512])?;
        self.log.1.sync_data()?;
        self.mark.1.rewind()?;
        self.mark.1.write_all(&[0x51; 64])?;
        self.mark.1.sync_data()?;
        Ok(BootClock.now().since(begun))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.log.0);
        let _ = fs::remove_file(&self.mark.0);
    }
}

/// How long durable writes take.
///
/// # Errors
/// What the system said.
pub(super) async fn writes(mut scratch: Scratch, until: Moment) -> io::Result<Option<Spread>> {
    let mut samples = Vec::new();
    while BootClock.now() < until {
        let written = tokio::task::spawn_blocking(move || {
            let took = scratch.write();
            (scratch, took)
        });
        let took;
        (scratch, took) = written.await.map_err(io::Error::other)?;
        samples.push(took?);
        sleep_until(&BootClock, BootClock.now() + WRITE_EVERY).await;
    }
    Ok(Spread::of(samples))
}

/// By how much timers come too late: what the sidecar's own loops would suffer.
pub(super) async fn stalls(until: Moment) -> Option<Spread> {
    let mut samples = Vec::new();
    loop {
        let due = BootClock.now() + TICK;
        if due >= until {
            return Spread::of(samples);
        }
        sleep_until(&BootClock, due).await;
        samples.push(BootClock.now().since(due));
    }
}

/// How long a member's kernel takes to answer.
///
/// # Errors
/// Why it does not, the last time.
pub(super) async fn round_trips(
    member: &Member,
    dialer: &dyn Dialer,
    until: Moment,
) -> Result<Spread, String> {
    let (mut samples, mut failed) = (Vec::new(), "no time was left to ask".to_owned());
    while BootClock.now() < until {
        let begun = BootClock.now();
        match dialer.dial(member.address.clone()).await {
            Ok(connection) => {
                samples.push(BootClock.now().since(begun));
                drop(connection);
            }
            Err(e) => failed = e.to_string(),
        }
        sleep_until(&BootClock, BootClock.now() + DIAL_EVERY).await;
    }
    Spread::of(samples).ok_or(failed)
}
