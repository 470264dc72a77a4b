//! The product's log of a simulated site, with simulated time, for whoever follows up a failure (set `QUORATE_STAGE_LOG`),
//! or as one number, for whoever compares two runs.

use std::{cell::Cell, fmt::Write as _};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    fmt::{format::Writer, time::FormatTime},
    layer::{Context, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

use super::{hash::EventHash, world::now};

struct SimulatedTime;

impl FormatTime for SimulatedTime {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        write!(w, "{:>12.3?}", now())
    }
}

fn product() -> Targets {
    Targets::new().with_target("quorate", LevelFilter::DEBUG).with_target("sim", LevelFilter::INFO)
}

/// Writes the log to standard output from now on, if the environment asks for it.
pub fn if_asked() {
    if std::env::var_os("QUORATE_STAGE_LOG").is_some() {
        to_stdout();
    }
}

/// Writes the log to standard output from now on.
pub fn to_stdout() {
    let layer =
        tracing_subscriber::fmt::layer().with_timer(SimulatedTime).with_ansi(false).with_filter(product());
    // Of several stages in one run the first has set it up.
    let _ = tracing_subscriber::registry().with(layer).try_init();
}

thread_local! {
    static HASH: Cell<EventHash> = Cell::default();
}

/// Every line of the log counts in [`hash`] from now on.
pub fn into_the_hash() {
    let _ = tracing_subscriber::registry().with(Hashing.with_filter(product())).try_init();
}

/// The lines of this thread's simulation so far, as one number.
pub fn hash() -> u64 {
    HASH.get().get()
}

/// A new simulation begins on this thread.
pub fn begin() {
    HASH.set(EventHash::default());
}

struct Hashing;

impl<S: tracing::Subscriber> Layer<S> for Hashing {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut line = Line(format!("{:?} {} ", now(), event.metadata().target()));
        event.record(&mut line);
        let mut hash = HASH.get();
        hash.bytes(line.0.as_bytes());
        HASH.set(hash);
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, "{field}={value:?} ");
    }
}
