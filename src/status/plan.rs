//! What becomes of the site if a device loses power now: the question that is asked before somebody pulls a plug.
//!
//! [`plan`] is pure: one [`Report`] gives one [`Plan`]. It says what the rules would do with what this sidecar knows at this
//! moment, one loss at a time. It promises nothing: between the question and the plug anything may happen, and how soon another
//! takes over is the bound of the timing in use, which holds where network and disks answer within a heartbeat.

use serde::Serialize;

use super::report::{Member, Ordered, Report};
use crate::hub::wall;

/// What would become of the site, device by device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The site.
    pub site: String,
    /// The device whose sidecar says so.
    pub seen_by: String,
    /// Who owns now; absent if that is not known, or nobody does.
    pub owner: Option<String>,
    /// What is wrong with the workload on the owner now; absent if nothing is, as far as is known here.
    pub workload_wrong: Option<String>,
    /// Whether a majority is heard. Without one nothing can be planned.
    pub quorum: bool,
    /// Whether the loss of any one device leaves the workload running somewhere. Where it does not work now, it is not known to.
    pub survives_any: bool,
    /// What holds already and matters here, one sentence each.
    pub notes: Vec<String>,
    /// One for each device, in the order of the member list.
    pub devices: Vec<Loss>,
}

/// What would become of the site without one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// The device.
    pub device: String,
    /// In one word.
    pub effect: Effect,
    /// Who could own then, the likeliest first; empty if nobody could, or that is not known.
    pub owners: Vec<String>,
    /// How soon another would own, in milliseconds, at most; absent where none would have to or could.
    pub within_ms: Option<u64>,
    /// How many more devices the site could lose then.
    pub devices_may_fail: u32,
    /// All of it in one sentence.
    pub text: String,
}

/// What the loss of a device does to the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Another device takes over.
    TakesOver,
    /// The owner goes on.
    GoesOn,
    /// The owner has to stop, because no majority is left.
    Stops,
    /// It runs nowhere, because nobody takes over.
    Nobody,
    /// Nothing: the device is not heard already.
    Nothing,
    /// It cannot be said from here.
    Unknown,
}

/// Whose votes count, and how many it takes.
struct Votes {
    all: usize,
    needed: usize,
    counted: usize,
}

impl Votes {
    fn of(report: &Report) -> Votes {
        let all = report.members.len();
        Votes { all, needed: all / 2 + 1, counted: report.members.iter().filter(|m| m.votes).count() }
    }

    /// How many more may be lost once `member` is; `None` if that leaves no majority.
    fn spare_without(&self, member: &Member) -> Option<u32> {
        let left = self.counted - usize::from(member.votes);
        left.checked_sub(self.needed).map(|spare| u32::try_from(spare).unwrap_or(u32::MAX))
    }
}

/// What would become of the site if one of its devices lost power now.
pub fn plan(report: &Report) -> Plan {
    let votes = Votes::of(report);
    let devices: Vec<Loss> = report.members.iter().map(|member| loss(report, &votes, member)).collect();
    let survives = |loss: &Loss| match loss.effect {
        Effect::TakesOver | Effect::GoesOn => true,
        // Whether the rest is well, the other devices say.
        Effect::Nothing => owner(report).is_some(),
        Effect::Stops | Effect::Nobody | Effect::Unknown => false,
    };
    Plan {
        site: report.site.clone(),
        seen_by: report.device.clone(),
        owner: owner(report).map(str::to_owned),
        workload_wrong: workload_wrong(report).map(|(_, wrong)| wrong.to_owned()),
        quorum: report.quorum,
        survives_any: !devices.is_empty() && devices.iter().all(survives) && workload_wrong(report).is_none(),
        notes: notes(report, &votes),
        devices,
    }
}

fn owner(report: &Report) -> Option<&str> {
    report.owner.device.as_deref().filter(|_| report.owner.known)
}

/// The owner, and what is wrong with its workload.
fn workload_wrong(report: &Report) -> Option<(&str, &str)> {
    owner(report).zip(report.owner.workload_wrong.as_deref())
}

fn notes(report: &Report, votes: &Votes) -> Vec<String> {
    let mut notes = Vec::new();
    if !report.quorum {
        let missing: Vec<&str> =
            report.members.iter().filter(|m| !m.votes).map(|m| m.device.as_str()).collect();
        notes.push(format!(
            "{} hears no majority: it takes {} of {} votes, and {} counts here; {} more of {} must come back",
            report.device,
            votes.needed,
            votes.all,
            votes.counted,
            votes.needed.saturating_sub(votes.counted),
            missing.join(", "),
        ));
        notes.push(
            "meanwhile status, why, events and metrics are still answered here, orders are refused and nothing is started; if the \
             others are a majority among themselves, they go on: ask one of them"
                .into(),
        );
        return notes;
    }
    if let Some(paused) = &report.orders.paused {
        let until = paused.until_unix_ms.map(|ms| format!(" until {}", wall::rfc3339(ms)));
        let until = until.unwrap_or_default();
        notes.push(format!("the site is paused{until} {}: nobody takes over of its own accord", by(paused)));
    }
    for (device, ordered) in &report.orders.drained {
        notes.push(format!("{device} is drained {}: it does not take over", by(ordered)));
    }
    if owner(report).is_none() {
        notes.push("nobody is known to own now".into());
    }
    if let Some((owner, wrong)) = workload_wrong(report) {
        notes.push(format!("{owner} owns, and its workload does not work now: {wrong}"));
    }
    notes
}

fn by(ordered: &Ordered) -> String {
    match ordered.reason.as_str() {
        "" => format!("by {}", ordered.actor),
        reason => format!("by {} ({reason})", ordered.actor),
    }
}

fn loss(report: &Report, votes: &Votes, member: &Member) -> Loss {
    let lost = member.device.as_str();
    let spare = votes.spare_without(member);
    let base = Loss {
        device: lost.to_owned(),
        effect: Effect::Unknown,
        owners: Vec::new(),
        within_ms: None,
        devices_may_fail: spare.unwrap_or(0),
        text: String::new(),
    };
    let told = |effect, owners: Vec<String>, text: String| Loss { effect, owners, text, ..base.clone() };
    if !report.quorum {
        let text = format!("it cannot be said: {} does not hear a majority now", report.device);
        return told(Effect::Unknown, Vec::new(), text);
    }
    let reserve = || reserve(spare.unwrap_or(0));
    let owner = owner(report);
    if !member.reachable {
        let owners = owner.filter(|o| *o != lost).map(str::to_owned).into_iter().collect();
        let text = format!("nothing changes, it is not heard now; {}", reserve_now(report));
        return told(Effect::Nothing, owners, text);
    }
    if spare.is_none() {
        let left = votes.counted - usize::from(member.votes);
        let why =
            format!("no majority would be left ({left} of {} votes, it takes {})", votes.all, votes.needed);
        return match owner {
            Some(owner) if owner == lost => {
                told(Effect::Nobody, Vec::new(), format!("nobody takes over: {why}"))
            }
            Some(owner) => told(Effect::Stops, Vec::new(), format!("{owner} stops the workload: {why}")),
            None => told(Effect::Nobody, Vec::new(), format!("nobody owns: {why}")),
        };
    }
    match owner {
        Some(owner) if owner != lost => {
            let how =
                if workload_wrong(report).is_some() { " as it is, its workload not working" } else { "" };
            told(Effect::GoesOn, vec![owner.to_owned()], format!("{owner} goes on{how}; {}", reserve()))
        }
        None => told(
            Effect::Unknown,
            Vec::new(),
            format!("nobody is known to own now, so it cannot be said who would; {}", reserve()),
        ),
        Some(_) => match successors(report, lost) {
            Ok(owners) => {
                let who = match owners.split_first() {
                    Some((first, [])) => first.clone(),
                    Some((first, others)) => format!("{first} (or {})", others.join(", ")),
                    None => String::new(),
                };
                let within = report.takeover_ms_max;
                let text = format!("{who} takes over in at most {}; {}", seconds(within), reserve());
                Loss { within_ms: Some(within), ..told(Effect::TakesOver, owners, text) }
            }
            Err(why) => told(Effect::Nobody, Vec::new(), format!("nobody takes over: {why}")),
        },
    }
}

/// Who takes over once the owner is lost, the likeliest first.
///
/// # Errors
/// Why nobody does.
fn successors(report: &Report, lost: &str) -> Result<Vec<String>, String> {
    if let Some(paused) = &report.orders.paused {
        let end = if paused.until_unix_ms.is_some() { "the end of the pause" } else { "`quorate resume`" };
        return Err(format!("the site is paused; the workload waits for that device, or for {end}"));
    }
    let others: Vec<&Member> = report.members.iter().filter(|m| m.device != lost).collect();
    let mut fit: Vec<String> = others.iter().filter(|m| m.fit && m.votes).map(|m| m.device.clone()).collect();
    if fit.is_empty() {
        let why = |m: &&Member| {
            let reason = m.unfit_reason.as_deref().unwrap_or("its vote is missing");
            format!("{}: {reason}", m.device)
        };
        let whys: Vec<String> = others.iter().map(why).collect();
        return Err(match whys.is_empty() {
            true => "there is no other device".into(),
            false => format!("no other device is fit ({})", whys.join("; ")),
        });
    }
    // The order in which they stand for election: the preferred one, then by name.
    fit.sort_by_key(|device| (report.orders.preferred.as_ref() != Some(device), device.clone()));
    Ok(fit)
}

fn reserve(more: u32) -> String {
    match more {
        0 => "the site could then lose no more devices".into(),
        1 => "the site could then lose 1 more device".into(),
        n => format!("the site could then lose {n} more devices"),
    }
}

fn reserve_now(report: &Report) -> String {
    match report.devices_may_fail {
        0 => "the site can lose no more devices".into(),
        1 => "the site can lose 1 more device".into(),
        n => format!("the site can lose {n} more devices"),
    }
}

/// Tenths of a second, rounded up: it shall not take longer than was said.
fn seconds(ms: u64) -> String {
    let tenths = ms.div_ceil(100);
    format!("{}.{} s", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests;
