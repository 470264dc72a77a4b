//! The writer that keeps the day's budget: each event is one write, and is passed on, dropped, or preceded by one line that says so.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::{
    super::when::date_seconds,
    Wall,
    budget::{Budget, Notice, Verdict, Weight},
    line_head,
};
use crate::{
    clock::{Clock, millis},
    config::{Log, LogFormat},
};

/// Writes to `W` what today's budget allows.
pub(super) struct Capped<W> {
    inner: W,
    budget: Arc<Mutex<Budget>>,
    clock: Arc<dyn Clock>,
    log: Log,
}

impl<W> Capped<W> {
    pub(super) fn new(inner: W, log: Log, clock: Arc<dyn Clock>) -> Capped<W> {
        let cap = u64::from(log.megabytes_per_day) * 1_000_000;
        let budget = Arc::new(Mutex::new(Budget::new(cap, clock.now())));
        Capped { inner, budget, clock, log }
    }

    fn writer<V>(&self, inner: V, weight: Weight) -> Writer<'_, W, V> {
        Writer { capped: self, inner, weight }
    }

    fn ask(&self, weight: Weight, bytes: usize) -> (Verdict, u64) {
        let now = self.clock.now();
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = budget.ask(weight, bytes, now);
        (verdict, self.clock.wall_ms().saturating_add(millis(budget.day_ends().since(now))))
    }

    /// One line of the log, with its end. `ends` is when the day ends, by the wall clock.
    fn line(&self, notice: Notice, ends: u64) -> String {
        let (cap, ends) = (self.log.megabytes_per_day, date_seconds(ends));
        let key = format!("{cap} MB a day, log.megabytes_per_day");
        let text = match notice {
            Notice::Resumed(lines) => {
                format!("a new day of the log: {lines} lines of the last one were not written ({key})")
            }
            Notice::WorkloadFull => format!(
                "the workload's output has used its half of today's log ({key}): no more of it until {ends} UTC"
            ),
            Notice::Full => {
                format!("today's log is full ({key}): until {ends} UTC only errors and decisions follow")
            }
            Notice::Silent => format!(
                "today's log is full, also for errors and decisions ({key}): nothing follows until {ends} UTC"
            ),
        };
        match self.log.format {
            LogFormat::Text => format!("{}{text}\n", line_head(Level::WARN, self.clock.wall_ms())),
            LogFormat::Json => {
                let at = Wall(self.clock.clone()).now();
                format!(
                    "{}\n",
                    serde_json::json!({ "timestamp": at, "level": "WARN", "message": text, "target": "quorate" })
                )
            }
        }
    }
}

impl<'w, W: MakeWriter<'w> + 'w> MakeWriter<'w> for Capped<W> {
    type Writer = Writer<'w, W, W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        self.writer(self.inner.make_writer(), Weight::Plain)
    }

    fn make_writer_for(&'w self, of: &Metadata<'_>) -> Self::Writer {
        let weight = if of.target() == "workload" {
            Weight::Workload
        } else if *of.level() == Level::ERROR || of.fields().field("reason").is_some() {
            Weight::Important
        } else {
            Weight::Plain
        };
        self.writer(self.inner.make_writer_for(of), weight)
    }
}

/// One event's way to the writer below.
pub(super) struct Writer<'w, W, V> {
    capped: &'w Capped<W>,
    inner: V,
    weight: Weight,
}

impl<W, V: io::Write> io::Write for Writer<'_, W, V> {
    /// Takes all of an event. The lock is not held while it is written: a log that is read slowly holds up its writer only.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let (verdict, ends) = self.capped.ask(self.weight, event.len());
        for notice in [verdict.resumed, verdict.full].into_iter().flatten() {
            self.inner.write_all(self.capped.line(notice, ends).as_bytes())?;
        }
        if verdict.write {
            self.inner.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
