//! The disk of a simulated device: slow, with a tail, full, or failing. What was not yet durable is lost with the power.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quorate::{
    dice::Dice,
    raft::log::{Amnesia, BoxFuture, Change, Contents, Disk},
};

/// What a disk suffers from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ailment {
    #[default]
    None,
    /// The next write, and all after it until the process starts anew, fail: fsync says EIO. Whether the first became
    /// durable nobody knows.
    Eio,
    /// No space is left: nothing becomes durable.
    Full,
}

struct State {
    contents: Contents,
    delay: Duration,
    tail: bool,
    ailment: Ailment,
    failed: bool,
    writes: u64,
    dice: Dice,
}

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    pub fn with(contents: Contents, dice: Dice) -> SimDisk {
        let (delay, ailment) = (Duration::ZERO, Ailment::None);
        SimDisk(Arc::new(Mutex::new(State {
            contents,
            delay,
            tail: false,
            ailment,
            failed: false,
            writes: 0,
            dice,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another disk is put in its place, while the device is down.
    pub fn replace(&self, contents: Contents) {
        self.state().contents = contents;
    }

    /// How long each write takes from now on.
    pub fn delay(&self, delay: Duration) {
        (self.state().delay, self.state().tail) = (delay, false);
    }

    /// Writes take about this long from now on, some of them much longer (lognormal, sigma 1).
    pub fn tail(&self, median: Duration) {
        (self.state().delay, self.state().tail) = (median, true);
    }

    pub fn ail(&self, ailment: Ailment) {
        self.state().ailment = ailment;
    }

    /// What the real disk makes of a damaged store: a new one that holds `first`, and the knowledge of what is missing.
    pub fn lose(&self, first: (u64, bytes::Bytes), amnesia: Amnesia) {
        self.state().contents =
            Contents { entries: [first].into(), amnesia: Some(amnesia), ..Contents::default() };
    }

    /// Whether a write has failed since the process started.
    pub fn has_failed(&self) -> bool {
        self.state().failed
    }

    /// The process that had it open is gone.
    pub fn reopen(&self) {
        self.state().failed = false;
    }

    /// How many writes have become durable.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// Whether a write takes longer than a heartbeat may, or fails.
    pub fn is_bad(&self) -> bool {
        let state = self.state();
        state.failed || state.ailment != Ailment::None || state.delay > Duration::from_millis(5)
    }
}

impl State {
    fn takes(&mut self) -> Duration {
        if !self.tail {
            return self.delay;
        }
        // The sum of twelve throws is normal enough.
        let twelve: f64 = (0..12).map(|_| (self.dice.throw() >> 11) as f64 / (1u64 << 53) as f64).sum();
        self.delay.mul_f64((twelve - 6.0).exp())
    }
}

impl Disk for SimDisk {
    fn write(&self, change: Change) -> BoxFuture<'_, io::Result<()>> {
        let takes = self.state().takes();
        Box::pin(async move {
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            let mut state = self.state();
            match state.ailment {
                _ if state.failed => return Err(io::Error::other("the disk has failed before")),
                Ailment::None => {}
                Ailment::Eio => {
                    state.failed = true;
                    if state.dice.throw().is_multiple_of(2) {
                        state.contents.apply(change);
                    }
                    return Err(io::Error::other("fsync: EIO"));
                }
                Ailment::Full => {
                    state.failed = true;
                    return Err(io::ErrorKind::StorageFull.into());
                }
            }
            state.contents.apply(change);
            state.writes += 1;
            Ok(())
        })
    }

    fn contents(&self) -> io::Result<Contents> {
        Ok(self.state().contents.clone())
    }
}
