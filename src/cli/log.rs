//! The log of `quorate run`: lines as IoT Edge's own modules write them, or JSON.
//!
//! `<6> 2026-11-02 08:15:30.123 +00:00 [INF] - text` is what edgeAgent's log filter and its level parser read. One
//! event is one line, whatever text it carries. The time is the wall clock's, for display. Lines go to stderr, without
//! colour. How much of them a day may hold is kept by [`budget`].

mod budget;
mod capped;

use std::{fmt, sync::Arc};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer as _, Registry,
    filter::{LevelFilter, Targets},
    fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer, time::FormatTime},
    layer::SubscriberExt as _,
    registry::LookupSpan,
};

use self::capped::Capped;
use super::when::date;
use crate::{
    clock::Clock,
    config::{Log, LogFormat},
};

/// A subscriber that writes to `writer`. Other crates' events are shown from `warn` on, so that `debug` shows ours.
/// openraft's are shown at `trace` only: it repeats itself for as long as a member is away, and what matters of it is
/// logged here once.
pub(super) fn subscriber<W>(log: Log, clock: Arc<dyn Clock>, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = Targets::new()
        .with_default(LevelFilter::from_level(log.level.min(Level::WARN)))
        .with_target(
            "openraft",
            if log.level == Level::TRACE { LevelFilter::TRACE } else { LevelFilter::OFF },
        )
        .with_target("quorate", log.level)
        // What the workload prints, under a target of its own (`workload/output.rs`).
        .with_target("workload", log.level);
    let layer = tracing_subscriber::fmt::layer().with_writer(Capped::new(writer, log, clock.clone()));
    let layer = match log.format {
        LogFormat::Text => layer.event_format(Line(clock)).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_timer(Wall(clock)).boxed(),
    };
    Registry::default().with(layer.with_filter(filter))
}

/// One for a command that runs the workload for a person: what that prints, and warnings.
pub(super) fn of_the_workload(clock: Arc<dyn Clock>) -> impl Subscriber + Send + Sync {
    let filter = Targets::new().with_default(LevelFilter::WARN).with_target("workload", Level::INFO);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).event_format(Line(clock));
    Registry::default().with(layer.with_filter(filter))
}

struct Wall(Arc<dyn Clock>);

impl Wall {
    fn now(&self) -> String {
        format!("{}Z", date(self.0.wall_ms()).replacen(' ', "T", 1))
    }
}

impl FormatTime for Wall {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        w.write_str(&self.now())
    }
}

/// What a line begins with.
fn line_head(level: Level, wall_ms: u64) -> String {
    let (syslog, name) = match level {
        Level::ERROR => (3, "ERR"),
        Level::WARN => (4, "WRN"),
        Level::INFO => (6, "INF"),
        Level::DEBUG => (7, "DBG"),
        Level::TRACE => (7, "VRB"),
    };
    format!("<{syslog}> {} +00:00 [{name}] - ", date(wall_ms))
}

struct Line(Arc<dyn Clock>);

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = Text::default();
        event.record(&mut text);
        writer.write_str(&line_head(*event.metadata().level(), self.0.wall_ms()))?;
        for c in text.message.chars().chain(text.fields.chars()) {
            // A line break or terminal code inside a text from outside must not make a line of its own.
            if c.is_control() { write!(writer, "{}", c.escape_default())? } else { writer.write_char(c)? }
        }
        writer.write_char('\n')
    }
}

/// The message, then the other fields as ` name=value`.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write as _;
        // Writing into a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            name => {
                self.fields.push(' ');
                self.fields.push_str(name);
                self.fields.push('=');
                self.fields.push_str(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Mutex, PoisonError},
    };

    use super::*;
    use crate::clock::Moment;

    #[derive(Debug)]
    struct Fixed;
    impl Clock for Fixed {
        fn now(&self) -> Moment {
            Moment::default()
        }
        fn wall_ms(&self) -> u64 {
            1_793_607_330_123
        }
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Sink {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: Level) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber =
            subscriber(Log { level, format, megabytes_per_day: 20 }, Arc::new(Fixed), move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(epoch = 17, device = "edge-1", "started");
            tracing::warn!("two\nlines \u{1b}[2J");
            tracing::debug!("hidden");
            tracing::info!(target: "openraft::core", "hidden");
        });
        let bytes = sink.0.lock().expect("no panic").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn text_is_what_iot_edge_reads() {
        let expected = "<6> 2026-11-02 08:15:30.123 +00:00 [INF] - started epoch=17 device=edge-1\n\
                        <4> 2026-11-02 08:15:30.123 +00:00 [WRN] - two\\nlines \\u{1b}[2J\n";
        assert_eq!(logged(LogFormat::Text, Level::INFO), expected);
        assert!(logged(LogFormat::Text, Level::DEBUG).contains("<7>"));
    }

    #[test]
    fn what_the_workload_prints_is_logged() {
        let sink = Sink::default();
        let writer = sink.clone();
        let log = Log { level: Level::INFO, format: LogFormat::Text, megabytes_per_day: 20 };
        let subscriber = subscriber(log, Arc::new(Fixed), move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "workload", stream = "stdout", "pump 3 is on");
        });
        let text = String::from_utf8(sink.0.lock().expect("no panic").clone()).expect("text");
        assert_eq!(text, "<6> 2026-11-02 08:15:30.123 +00:00 [INF] - pump 3 is on stream=stdout\n");
    }

    /// What stands in a log of one megabyte a day after the workload, then the sidecar, then its decisions have talked too much.
    fn full(format: LogFormat) -> Vec<String> {
        let sink = Sink::default();
        let writer = sink.clone();
        let log = Log { level: Level::INFO, format, megabytes_per_day: 1 };
        let subscriber = subscriber(log, Arc::new(Fixed), move || writer.clone());
        let long = "x".repeat(1000);
        tracing::subscriber::with_default(subscriber, || {
            (0..900).for_each(|_| tracing::info!(target: "workload", stream = "stdout", "{long}"));
            (0..900).for_each(|_| tracing::info!("{long}"));
            tracing::error!("a disk fails");
            (0..900).for_each(|_| tracing::info!(reason = "owning", "{long}"));
        });
        let bytes = sink.0.lock().expect("no panic").clone();
        assert!((1_000_000..1_127_000).contains(&bytes.len()), "{}", bytes.len());
        let text = String::from_utf8(bytes).expect("text");
        text.lines().filter(|line| !line.contains(&long)).map(str::to_owned).collect()
    }

    #[test]
    fn a_full_log_says_so_and_still_tells_of_errors() {
        let lines = full(LogFormat::Text);
        let ends = "until 2026-11-03 08:15:30 UTC";
        let head = "<4> 2026-11-02 08:15:30.123 +00:00 [WRN] - ";
        assert_eq!(lines.len(), 4, "{lines:#?}");
        assert!(
            lines[0].starts_with(head)
                && lines[0].contains("the workload's output")
                && lines[0].contains(ends)
        );
        assert!(
            lines[1].starts_with(head)
                && lines[1].ends_with(&format!("{ends} only errors and decisions follow"))
        );
        assert!(lines[2].ends_with("[ERR] - a disk fails"), "{}", lines[2]);
        assert!(lines[3].starts_with(head) && lines[3].ends_with(&format!("nothing follows {ends}")));
        let lines = full(LogFormat::Json);
        let parsed: Vec<serde_json::Value> =
            lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(
            (parsed.len(), &parsed[1]["level"], &parsed[2]["level"]),
            (4, &"WARN".into(), &"ERROR".into())
        );
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = logged(LogFormat::Json, Level::INFO);
        let first: serde_json::Value =
            serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
        assert_eq!(first["timestamp"], "2026-11-02T08:15:30.123Z");
        assert_eq!((&first["message"], &first["epoch"]), (&"started".into(), &17.into()));
        assert_eq!(text.lines().count(), 2);
    }
}
