//! `quorate plan`: what becomes of the site if a device loses power now.
//!
//! The judgement is [`plan`]'s, from the sidecar's status; this file asks and prints.

use std::fmt::Write as _;

use super::{
    DONE, NO, Stop,
    client::{ANSWER_TIME, Target, read_report},
    say, wrap,
};
use crate::{
    config::Environment,
    status::plan::{Plan, plan},
};

const WIDTH: usize = 80;

/// Say what becomes of the site if a device loses power now
///
/// One line for each device: whether the owner goes on, who would take over and how soon,
/// and how many more devices the site could lose then. Says also what a pause, a drain or
/// a missing majority changes, and if the workload does not work on the owner now: then no
/// loss is survived. Asks one sidecar, and changes nothing.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate plan\n  quorate plan && ssh edge-2 poweroff\n  \
                        quorate plan --json | jq -r '.devices[] | [.device, .effect] | @tsv'\n\n\
                        Exit codes: 0 the site survives the loss of any one device, 1 it does not, or that is\n\
                        not known, 2 this sidecar cannot be reached."
)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
    /// Print {"site", "seen_by", "owner", "workload_wrong", "quorum", "survives_any",
    /// "notes", "devices"}
    #[arg(long, verbatim_doc_comment)]
    json: bool,
}

pub(super) async fn run(args: Args, environment: &Environment) -> Result<u8, Stop> {
    let mut client = args.target.connect(environment, ANSWER_TIME).await?;
    let plan = plan(&read_report(&client.status().await?)?);
    say(&if args.json { serde_json::to_string(&plan).unwrap_or_default() } else { text(&plan) })?;
    Ok(if plan.survives_any { DONE } else { NO })
}

fn text(plan: &Plan) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        // Names and reasons are others' texts: a control code in them must not reach the terminal.
        let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        for (i, part) in wrap(&plain, WIDTH - 4).iter().enumerate() {
            let _ = writeln!(out, "{}{part}", if i == 0 { "" } else { "    " });
        }
    };
    plan.notes.iter().for_each(|note| line(format!("note: {note}.")));
    for loss in &plan.devices {
        line(format!("if {} loses power now: {}.", loss.device, loss.text));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::plan::{Effect, Loss};

    #[test]
    fn stays_inside_80_columns_whatever_the_names() {
        let loss = |device: &str, text: &str| Loss {
            device: device.into(),
            effect: Effect::GoesOn,
            owners: Vec::new(),
            within_ms: None,
            devices_may_fail: 0,
            text: text.into(),
        };
        let mut plan = Plan {
            site: "plant-7".into(),
            seen_by: "edge-1".into(),
            owner: None,
            workload_wrong: None,
            quorum: true,
            survives_any: true,
            notes: vec![
                "the site is paused by anna (new switch): nobody takes over of its own accord".into(),
            ],
            devices: vec![loss("edge-1", "edge-2 goes on; the site could then lose no more devices")],
        };
        assert_eq!(
            text(&plan),
            "\
note: the site is paused by anna (new switch): nobody takes over of its own
    accord.
if edge-1 loses power now: edge-2 goes on; the site could then lose no more
    devices.
"
        );
        plan.devices.push(loss(&"x".repeat(128), "\u{1b}[2J\n"));
        let shown = text(&plan);
        assert!(
            shown.lines().all(|line| line.chars().count() <= WIDTH) && !shown.contains('\u{1b}'),
            "{shown}"
        );
    }
}
