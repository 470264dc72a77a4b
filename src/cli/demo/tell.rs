//! How the demo's story is told: line by line with the time since its start, or one JSON object per event.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use super::super::wrap;
use crate::clock::{BootClock, Clock, Moment};

/// What remains of 80 columns beside the time.
const WIDTH: usize = 69;

/// What came out.
pub(super) struct Verdict {
    pub(super) ok: bool,
    pub(super) overlap: Duration,
    pub(super) overlapped: bool,
    pub(super) converged: bool,
    pub(super) silent_loss_gap: Duration,
    pub(super) crash_gap: Duration,
    pub(super) handover_gap: Duration,
    pub(super) ticks: usize,
    pub(super) runs: usize,
}

/// Prints the story to stdout.
pub(super) struct Teller {
    begun: Moment,
    json: bool,
    colour: bool,
    chapter: u32,
    judged: Option<bool>,
}

impl Teller {
    pub(super) fn new(json: bool, colour: bool) -> Teller {
        Teller { begun: BootClock.now(), json, colour, chapter: 0, judged: None }
    }

    /// Time since the story began.
    pub(super) fn elapsed(&self) -> Duration {
        BootClock.now().since(self.begun)
    }

    /// The verdict, once it was given.
    pub(super) fn judged(&self) -> Option<bool> {
        self.judged
    }

    pub(super) fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        if self.json {
            self.object("chapter", json!({"title": title, "number": self.chapter}));
            return;
        }
        let (bold, plain) = if self.colour { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        self.text(&format!("\n{bold}{}. {title}{plain}", self.chapter));
    }

    /// One event: `facts` for programs, `text` for people.
    pub(super) fn line(&mut self, event: &str, facts: Value, text: &str) {
        if self.json {
            self.object(event, facts);
        } else {
            let seconds = self.elapsed().as_secs_f64();
            // What is kept is there to be copied, and stays in one piece.
            let width = if event == "kept" { usize::MAX } else { WIDTH };
            for (n, line) in wrap(text, width).iter().enumerate() {
                let head = if n == 0 { format!("{seconds:7.2} s  ") } else { " ".repeat(11) };
                self.text(&format!("{head}{line}"));
            }
        }
    }

    pub(super) fn verdict(&mut self, v: &Verdict) {
        self.judged = Some(v.ok);
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        if self.json {
            let verdict = json!({"verdict": {
                "ok": v.ok,
                "overlap_ms": ms(v.overlap),
                "twins_converged": v.converged,
                "silent_loss_gap_ms": ms(v.silent_loss_gap),
                "sidecar_crash_gap_ms": ms(v.crash_gap),
                "handover_gap_ms": ms(v.handover_gap),
            }});
            self.text(&verdict.to_string());
            return;
        }
        let mark = |good: bool| if good { "yes" } else { "NO" };
        let (begin, end) = match (self.colour, v.ok) {
            (false, _) => ("", ""),
            (true, true) => ("\x1b[1;36m", "\x1b[0m"),
            (true, false) => ("\x1b[1;31m", "\x1b[0m"),
        };
        let mut out = format!(
            "\n{begin}Verdict: {}{end}\n",
            if v.ok { "all promises held" } else { "NOT all promises held" }
        );
        let overlap =
            if v.overlapped { format!("NO: {} ms", ms(v.overlap)) } else { "yes: never two at once".into() };
        let _ =
            writeln!(out, "  one workload at a time   {overlap} ({} tick records, {} runs)", v.ticks, v.runs);
        let _ = writeln!(out, "  twins converged          {}", mark(v.converged));
        let _ = writeln!(out, "  owner's device lost      {} ms without a workload", ms(v.silent_loss_gap));
        let _ = writeln!(out, "  only its sidecar lost    {} ms", ms(v.crash_gap));
        let _ = write!(out, "  planned handover         {} ms", ms(v.handover_gap));
        self.text(&out);
    }

    fn object(&self, event: &str, facts: Value) {
        let mut object =
            json!({"t_ms": u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX), "event": event});
        if let (Some(object), Value::Object(facts)) = (object.as_object_mut(), facts) {
            object.extend(facts);
        }
        self.text(&object.to_string());
    }

    fn text(&self, text: &str) {
        // Nobody listening is no reason to leave processes behind: the story goes on.
        let _ = super::super::say(text);
    }
}
