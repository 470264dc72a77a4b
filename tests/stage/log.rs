//! The product's log of a simulated site, with simulated time, for whoever follows up a failure: set `QUORATE_STAGE_LOG`.

use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets},
    fmt::{format::Writer, time::FormatTime},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

struct SimulatedTime;

impl FormatTime for SimulatedTime {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        write!(w, "{:>12.3?}", turmoil::sim_elapsed().unwrap_or_default())
    }
}

/// Writes the log to standard output from now on, if the environment asks for it.
pub fn if_asked() {
    if std::env::var_os("QUORATE_STAGE_LOG").is_none() {
        return;
    }
    let only =
        Targets::new().with_target("quorate", LevelFilter::DEBUG).with_target("turmoil", LevelFilter::INFO);
    let layer = tracing_subscriber::fmt::layer().with_timer(SimulatedTime).with_ansi(false).with_filter(only);
    // Of several stages in one run the first has set it up.
    let _ = tracing_subscriber::registry().with(layer).try_init();
}
