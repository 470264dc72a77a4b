//! Time and hosts of the simulation: one single-threaded tokio runtime per host, all with paused clocks, that take turns
//! of a simulated millisecond each.
//!
//! A host can lose its power or its process (its runtime is dropped with everything in it) and it can be frozen (it gets
//! no turn). Nothing here depends on real time or on real chance: tokio's own dice, which choose among the waiters of
//! a watch channel, are seeded too, which needs `--cfg tokio_unstable` (`.cargo/config.toml`).

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use tokio::{runtime::Runtime, task::JoinHandle};

/// A turn.
pub const TICK: Duration = Duration::from_millis(1);

/// What runs on a host.
pub type Software = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

thread_local! {
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// True time since the beginning of this thread's simulation.
pub fn now() -> Duration {
    NOW.get()
}

/// Tells when a runtime has nothing left to do.
#[derive(Default)]
struct Idle {
    parked: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Idle {
    fn park(&self) {
        self.parked.store(true, Ordering::Relaxed);
        if let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
    }

    async fn wait(&self) {
        self.parked.store(false, Ordering::Relaxed);
        poll_fn(|cx| {
            if self.parked.load(Ordering::Relaxed) {
                return Poll::Ready(());
            }
            *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// What stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    /// The process alone, as by SIGSTOP: its timers are late afterwards.
    Sidecar,
    /// The whole machine, as by suspend: tokio's timers stood still, the boot clock did not.
    Machine,
}

struct Host {
    runtime: Runtime,
    idle: Arc<Idle>,
    software: Box<dyn Fn() -> Software>,
    running: Option<JoinHandle<Result<(), String>>>,
    frozen: Option<Freeze>,
    /// What its timers lack.
    behind: Duration,
    seed: u64,
}

impl Host {
    fn boot(&mut self) {
        self.seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        self.idle = Arc::default();
        self.runtime = runtime(&self.idle, self.seed);
        self.running = Some(self.runtime.spawn((self.software)()));
        (self.frozen, self.behind) = (None, Duration::ZERO);
    }

    /// One turn. `Some` if the software has ended.
    fn turn(&mut self) -> Option<Result<(), String>> {
        let time = TICK + std::mem::take(&mut self.behind);
        let idle = self.idle.clone();
        self.runtime.block_on(async {
            tokio::time::advance(time).await;
            idle.wait().await;
        });
        if !self.running.as_ref()?.is_finished() {
            return None;
        }
        let done = self.running.take()?;
        Some(self.runtime.block_on(done).unwrap_or_else(|e| Err(e.to_string())))
    }
}

fn runtime(idle: &Arc<Idle>, seed: u64) -> Runtime {
    let idle = idle.clone();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).on_thread_park(move || idle.park());
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    #[cfg(not(tokio_unstable))]
    let _ = seed;
    builder.build().expect("a runtime without I/O")
}

/// All hosts, and the time.
#[derive(Default)]
pub struct World {
    elapsed: Duration,
    hosts: Vec<Host>,
}

impl World {
    pub fn new() -> World {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                PANICKED.set(true);
                usual(info);
            }));
        });
        PANICKED.set(false);
        NOW.set(Duration::ZERO);
        super::log::begin();
        World::default()
    }

    /// True time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Adds a host and starts it.
    pub fn host(&mut self, seed: u64, software: impl Fn() -> Software + 'static) {
        let idle = Arc::<Idle>::default();
        let runtime = runtime(&idle, seed);
        let software = Box::new(software);
        let mut host =
            Host { runtime, idle, software, running: None, frozen: None, behind: Duration::ZERO, seed };
        host.boot();
        self.hosts.push(host);
    }

    /// Ends whatever runs on the host, at once.
    pub fn kill(&mut self, n: usize) {
        self.enter();
        let host = &mut self.hosts[n];
        host.running = None;
        host.frozen = None;
        host.idle = Arc::default();
        host.runtime = runtime(&host.idle, host.seed);
    }

    /// Starts the host's software anew.
    pub fn boot(&mut self, n: usize) {
        self.enter();
        self.hosts[n].boot();
    }

    pub fn is_up(&self, n: usize) -> bool {
        self.hosts[n].running.is_some()
    }

    /// The host gets no turn until it is thawed.
    pub fn freeze(&mut self, n: usize, what: Freeze) {
        self.hosts[n].frozen = Some(what);
    }

    pub fn thaw(&mut self, n: usize) {
        self.hosts[n].frozen = None;
    }

    pub fn frozen(&self, n: usize) -> Option<Freeze> {
        self.hosts[n].frozen
    }

    /// Makes this the world that the thread's clock shows.
    fn enter(&self) {
        NOW.set(self.elapsed);
    }

    /// Moves the time on. Call [`turn`](World::turn) for each host then.
    pub fn tick(&mut self) {
        self.elapsed += TICK;
        self.enter();
    }

    /// One host's turn.
    ///
    /// # Errors
    /// If its software has failed, or anything on it has panicked.
    pub fn turn(&mut self, n: usize) -> Result<(), String> {
        let host = &mut self.hosts[n];
        match host.frozen {
            Some(Freeze::Sidecar) => host.behind += TICK,
            Some(Freeze::Machine) => {}
            None if host.running.is_none() => {}
            None => {
                let span = tracing::info_span!(target: "sim", "host", n = n + 1).entered();
                let ended = host.turn();
                drop(span);
                if PANICKED.get() {
                    return Err(format!("something panicked on device {n}"));
                }
                return ended.unwrap_or(Ok(()));
            }
        }
        Ok(())
    }
}
