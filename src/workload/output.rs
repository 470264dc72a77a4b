//! What the workload prints, turned into log lines without letting it fill the log.
//!
//! A line is cut at [`LINE_MAX`] bytes; beyond [`BURST`] lines at once and [`PER_SECOND`] lines a second the rest is
//! counted and dropped, and the count is logged. Reading never stops, so a chatty workload is not held up; and nothing
//! here is needed for the workload to be stopped, because the pipes do not go through the fencer.
//!
//! Deliberately not done: no file of its own, no guess at levels inside the lines.

use std::{sync::Arc, time::Duration};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::clock::{Clock, Moment};

/// The longest part of a line that is logged, in bytes.
pub(super) const LINE_MAX: usize = 2048;
/// How many lines a second are logged in the long run.
pub(super) const PER_SECOND: u64 = 100;
/// How often at most the number of dropped lines is logged.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// How many lines at once.
pub(super) const BURST: u64 = 1000;

/// Reads `from` until its end and logs its lines under the target `workload`.
pub(super) async fn log(from: impl AsyncRead + Unpin, stream: &'static str, clock: Arc<dyn Clock>) {
    let mut from = from;
    let mut cutter = Cutter::default();
    let mut limiter = Limiter::new(clock.now());
    let mut bytes = vec![0; 8192];
    loop {
        let n = match from.read(&mut bytes).await {
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        for line in cutter.push(bytes.get(..n).unwrap_or_default()) {
            show(&line, stream, &mut limiter, clock.now());
        }
    }
    if let Some(line) = cutter.rest() {
        show(&line, stream, &mut limiter, clock.now());
    }
    if limiter.dropped > 0 {
        tracing::warn!(target: "workload", stream, dropped = limiter.dropped, "lines of output were not logged");
    }
}

fn show(line: &str, stream: &'static str, limiter: &mut Limiter, now: Moment) {
    match limiter.admit(now) {
        Admitted::No => {}
        Admitted::Yes { dropped_before } => {
            if dropped_before > 0 {
                let dropped = dropped_before;
                tracing::warn!(target: "workload", stream, dropped, "lines of output were not logged");
            }
            tracing::info!(target: "workload", stream, "{line}");
        }
    }
}

/// Cuts bytes into printable lines of bounded length.
#[derive(Debug, Default)]
struct Cutter {
    line: Vec<u8>,
    lost: usize,
}

impl Cutter {
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut pieces = bytes.split(|b| *b == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            let room = LINE_MAX - self.line.len();
            let fits = piece.len().min(room);
            self.line.extend_from_slice(piece.get(..fits).unwrap_or_default());
            self.lost = self.lost.saturating_add(piece.len() - fits);
            if pieces.peek().is_some() {
                lines.push(self.take());
            }
        }
        lines
    }

    fn rest(&mut self) -> Option<String> {
        (!self.line.is_empty()).then(|| self.take())
    }

    /// Control characters are shown as such: a log must not be able to steer a terminal.
    fn take(&mut self) -> String {
        let bytes = std::mem::take(&mut self.line);
        let lost = std::mem::take(&mut self.lost);
        let mut line = String::new();
        for c in String::from_utf8_lossy(&bytes).trim_end_matches('\r').chars() {
            if c.is_control() && c != '\t' { line.extend(c.escape_default()) } else { line.push(c) }
        }
        if lost > 0 {
            line.push_str(&format!(" ... ({lost} bytes more)"));
        }
        line
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Admitted {
    Yes { dropped_before: u64 },
    No,
}

/// A token bucket over lines; counts in thousandths of a line, so that short waits are not lost to rounding.
#[derive(Debug)]
struct Limiter {
    millilines: u64,
    at: Moment,
    dropped: u64,
    told: Option<Moment>,
}

impl Limiter {
    fn new(now: Moment) -> Limiter {
        Limiter { millilines: BURST * 1000, at: now, dropped: 0, told: None }
    }

    fn admit(&mut self, now: Moment) -> Admitted {
        let earned = u64::try_from(now.since(self.at).as_millis()).unwrap_or(u64::MAX);
        if earned > 0 {
            self.millilines =
                self.millilines.saturating_add(earned.saturating_mul(PER_SECOND)).min(BURST * 1000);
            self.at = now;
        }
        if self.millilines < 1000 {
            self.dropped = self.dropped.saturating_add(1);
            return Admitted::No;
        }
        self.millilines -= 1000;
        let due = self.dropped > 0 && self.told.is_none_or(|told| now.since(told) >= TOLD_EVERY);
        if !due {
            return Admitted::Yes { dropped_before: 0 };
        }
        self.told = Some(now);
        Admitted::Yes { dropped_before: std::mem::take(&mut self.dropped) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn long_lines_are_cut_and_counted() {
        let mut cutter = Cutter::default();
        let lines = cutter.push(&[vec![b'x'; LINE_MAX + 5], b"\nshort\r\nrest".to_vec()].concat());
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with(" ... (5 bytes more)"), "{}", lines[0]);
        assert_eq!(lines[1], "short");
        assert_eq!(cutter.rest().as_deref(), Some("rest"));
        assert_eq!(cutter.rest(), None);
    }

    #[tokio::test]
    async fn lines_reach_the_log_with_their_stream() {
        #[derive(Clone, Default)]
        struct Sink(Arc<std::sync::Mutex<Vec<u8>>>);
        impl std::io::Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().expect("not poisoned").extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        log(&b"one\ntwo"[..], "stderr", Arc::new(crate::clock::BootClock)).await;
        let text = String::from_utf8(sink.0.lock().expect("not poisoned").clone()).expect("plain");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("INFO workload: one stream=\"stderr\""), "{text}");
        assert!(lines[1].contains("two"), "{text}");
    }

    #[test]
    fn terminals_are_not_steered() {
        assert_eq!(Cutter::default().push(b"a\x1b[2Jb\tc\xff\n"), ["a\\u{1b}[2Jb\tc\u{fffd}"]);
    }

    #[test]
    fn a_flood_is_bounded_and_counted() {
        let mut now = Moment::default();
        let mut limiter = Limiter::new(now);
        let admitted = (0..5000).filter(|_| limiter.admit(now) != Admitted::No).count();
        assert_eq!(admitted as u64, BURST);
        now = now + Duration::from_millis(10);
        assert_eq!(limiter.admit(now), Admitted::Yes { dropped_before: 4000 });
        assert_eq!(limiter.admit(now), Admitted::No);
        now = now + Duration::from_secs(1);
        assert_eq!(limiter.admit(now), Admitted::Yes { dropped_before: 0 }, "counted on, and told later");
        now = now + TOLD_EVERY;
        assert_eq!(limiter.admit(now), Admitted::Yes { dropped_before: 1 });
    }

    proptest! {
        #[test]
        fn cutting_does_not_depend_on_the_pieces(bytes in prop::collection::vec(any::<u8>(), 0..500), n in 1usize..50) {
            let whole = Cutter::default().push(&bytes);
            let mut cutter = Cutter::default();
            let pieces: Vec<String> = bytes.chunks(n).flat_map(|piece| cutter.push(piece)).collect();
            prop_assert_eq!(whole, pieces);
        }
    }
}
