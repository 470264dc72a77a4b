//! `quorate events`: what happened on a device of late.

use std::fmt::Write as _;

use super::{
    DONE, Stop,
    client::{ANSWER_TIME, Target},
    say,
    when::date,
    wrap,
};
use crate::{
    config::Environment,
    control::proto::{Event, GetEventsRequest},
};

const WIDTH: usize = 80;
/// The date and two blanks.
const INDENT: usize = 25;

/// List what happened here of late: decisions, ownerships, conditions, orders
///
/// The last thousand are kept, also over a restart and a loss of power; all but the last
/// half second. Oldest first; times are UTC, by this device's wall clock.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate events\n  quorate events -n 1000 --json | grep ownership\n\n\
                        Exit codes: 0 done, 2 this sidecar cannot be reached."
)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
    /// How many, the newest
    #[arg(short = 'n', long = "last", value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1000))]
    last: u32,
    /// Print one JSON object a line: seq, unix_ms, kind, name, over, device, epoch, text
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, environment: &Environment) -> Result<u8, Stop> {
    let mut client = args.target.connect(environment, ANSWER_TIME).await?;
    let reply = client.stub.get_events(GetEventsRequest { last: args.last }).await;
    let events = reply.map_err(|status| client.trouble(&status))?.into_inner().events;
    if !events.is_empty() {
        say(&if args.json { json(&events) } else { text(&events) })?;
    }
    Ok(DONE)
}

pub(super) fn json(events: &[Event]) -> String {
    let mut out = String::new();
    for Event { seq, unix_ms, kind, name, over, device, epoch, text, .. } in events {
        let device = Some(device).filter(|device| !device.is_empty());
        let event = serde_json::json!({
            "seq": seq, "unix_ms": unix_ms, "kind": kind, "name": name, "over": over, "device": device,
            "epoch": epoch, "text": text,
        });
        let _ = writeln!(out, "{event}");
    }
    out
}

fn text(events: &[Event]) -> String {
    let mut out = String::new();
    for event in events {
        let sentence: String = event.sentence.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        for (i, line) in wrap(&sentence, WIDTH - INDENT).iter().enumerate() {
            let date = if i == 0 { date(event.unix_ms) } else { String::new() };
            let _ = writeln!(out, "{date:<INDENT$}{line}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sentence: &str) -> Event {
        Event {
            seq: 7,
            unix_ms: 1_793_607_330_123,
            kind: "condition".into(),
            name: "no.spare".into(),
            text: "not heard: edge-3".into(),
            sentence: sentence.into(),
            ..Event::default()
        }
    }

    #[test]
    fn one_thing_a_line_inside_80_columns() {
        let long = format!("standing_by: {}", "another device owns and ".repeat(4));
        let shown = text(&[event("no.spare: not heard: edge-3"), event(&long), event("\u{1b}[2J\n")]);
        assert!(shown.starts_with("2026-11-02 08:15:30.123  no.spare: not heard: edge-3\n"), "{shown}");
        assert!(shown.contains("\n                         owns and another"), "{shown}");
        assert!(shown.lines().all(|l| l.chars().count() <= WIDTH) && !shown.contains('\u{1b}'), "{shown}");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let shown =
            json(&[event("a"), Event { epoch: Some(3), over: true, device: "edge-1".into(), ..event("b") }]);
        let lines: Vec<serde_json::Value> =
            shown.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(
            (&lines[0]["epoch"], &lines[0]["device"], &lines[0]["seq"]),
            (&().into(), &().into(), &7.into())
        );
        assert_eq!(
            (&lines[1]["epoch"], &lines[1]["over"], &lines[1]["device"]),
            (&3.into(), &true.into(), &"edge-1".into())
        );
    }
}
