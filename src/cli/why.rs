//! `quorate why`: the last decision, and how ownership came to be where it is.

use std::fmt::Write as _;

use super::{
    DONE, Stop,
    client::{ANSWER_TIME, Target},
    say,
    when::{date_seconds, span},
    wrap,
};
use crate::{
    clock::{BootClock, Clock as _},
    config::Environment,
    control::proto::{WhyReply, WhyRequest},
};

/// Say why the workload runs where it runs, and what happened before
///
/// Prints this device's last decision and the last ownership changes, newest first,
/// with cause, actor, reason and duration. Times are UTC, by the wall clock of the
/// device that claimed.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate why\n  quorate why --json --endpoint http://10.0.0.12:7601"
)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
    /// Print {"decision", "decided_unix_ms", "changes": [...]}
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, environment: &Environment) -> Result<u8, Stop> {
    let mut client = args.target.connect(environment, ANSWER_TIME).await?;
    let reply = client.stub.why(WhyRequest {}).await.map_err(|status| client.trouble(&status))?.into_inner();
    say(&if args.json { json(&reply) } else { text(&reply, BootClock.wall_ms()) })?;
    Ok(DONE)
}

fn json(reply: &WhyReply) -> String {
    let changes = reply.changes.iter().map(|c| {
        serde_json::json!({
            "epoch": c.epoch, "device": c.device, "cause": c.cause, "actor": c.actor, "reason": c.reason,
            "since_unix_ms": c.since_unix_ms, "until_unix_ms": (c.until_unix_ms > 0).then_some(c.until_unix_ms),
        })
    });
    let changes: Vec<_> = changes.collect();
    serde_json::json!({ "decision": reply.decision, "decided_unix_ms": reply.decided_unix_ms, "changes": changes })
        .to_string()
}

fn text(reply: &WhyReply, now_ms: u64) -> String {
    let mut out = String::new();
    let decision = if reply.decision.is_empty() { "nothing has been decided yet" } else { &reply.decision };
    let when = match reply.decided_unix_ms {
        0 => String::new(),
        ms => format!(" ({} ago)", span(now_ms.saturating_sub(ms))),
    };
    for (i, line) in wrap(&format!("{decision}{when}"), 72).iter().enumerate() {
        let _ = writeln!(out, "{:<8}{line}", if i == 0 { "now" } else { "" });
    }
    for c in &reply.changes {
        let lasted = match c.until_unix_ms {
            0 => format!("for {} so far", span(now_ms.saturating_sub(c.since_unix_ms))),
            until => format!("for {}", span(until.saturating_sub(c.since_unix_ms))),
        };
        let cause = if c.actor.is_empty() { c.cause.clone() } else { format!("{} by {}", c.cause, c.actor) };
        let _ = writeln!(
            out,
            "\nepoch {}  {}  since {}  {lasted}",
            c.epoch,
            c.device,
            date_seconds(c.since_unix_ms)
        );
        let words = if c.reason.is_empty() { cause } else { format!("{cause}: {}", c.reason) };
        for line in wrap(&words, 72) {
            let _ = writeln!(out, "        {line}");
        }
    }
    if reply.changes.is_empty() {
        out.push_str("\nno device has owned yet\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::proto::OwnershipChange;

    #[test]
    fn tells_the_story_newest_first() {
        let change = |epoch, device: &str, since, until| OwnershipChange {
            epoch,
            device: device.into(),
            cause: "takeover".into(),
            actor: String::new(),
            reason: "edge-1 was not heard for 324 ms".into(),
            since_unix_ms: since,
            until_unix_ms: until,
        };
        let reply = WhyReply {
            decision: "keeps the workload running".into(),
            decided_unix_ms: 1_793_607_330_000,
            changes: vec![
                change(2, "edge-2", 1_793_607_300_000, 0),
                change(1, "edge-1", 1_793_600_000_000, 1_793_607_299_000),
            ],
        };
        let expected = "\
now     keeps the workload running (2.0 s ago)

epoch 2  edge-2  since 2026-11-02 08:15:00  for 32 s so far
        takeover: edge-1 was not heard for 324 ms

epoch 1  edge-1  since 2026-11-02 06:13:20  for 2 h
        takeover: edge-1 was not heard for 324 ms
";
        assert_eq!(text(&reply, 1_793_607_332_000), expected);
        let empty = text(&WhyReply::default(), 0);
        assert!(empty.contains("nothing has been decided yet") && empty.contains("no device has owned yet"));
    }
}
