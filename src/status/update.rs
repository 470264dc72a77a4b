//! The order of a rolling update: which device may be touched now, what is waited for before, and when the ownership moves.
//!
//! [`next_step`] is pure: one [`Report`], what is wanted ([`Goal`]) and what was done and seen so far ([`Memory`]) give one
//! [`Step`]. Standbys come first, one at a time and only while the site can bear to lose that device; then one planned handover
//! to a device that has what is wanted; then the old owner. Nothing is put back: whatever does not go as it should ends the
//! update where it stands. It runs no command and asks no sidecar; `cli/update/` does.

use std::{collections::BTreeSet, time::Duration};

use self::memory::Known;
pub use self::memory::Memory;
use super::{
    plan::{Effect, plan},
    report::{Member, Report},
};

mod memory;

/// For so long a status may show a device as heard that is lost (`node/report.rs`).
const STALE: Duration = Duration::from_secs(3);

/// What tells that a device has been updated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// It runs another build than before.
    Changed,
    /// Its sidecar has started again.
    Restarted,
    /// The command's word is enough.
    Any,
    /// It runs this build: all of it, only the version before its `+`, or only the fingerprint behind it.
    Build(String),
}

/// What is wanted of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goal {
    /// What tells that a device has been updated.
    pub expect: Expect,
    /// The devices that are updated; empty: all that may own.
    pub only: BTreeSet<String>,
    /// For how long a device has to be well before the next step, at least; see [`Goal::settles_in`].
    pub settle: Duration,
}

/// What is due now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The command is run for this device.
    Update(String),
    /// The ownership is handed over.
    HandOver {
        /// The owner, which is not updated yet.
        from: String,
        /// A device that is.
        to: String,
    },
    /// Nothing yet.
    Wait(String),
    /// Nothing any more: it did not go as it should, or never can.
    Stop(String),
    /// All is done.
    Done,
}

impl Goal {
    /// Whether a build is the wanted one; false where no certain build is wanted.
    pub fn names(&self, build: &str) -> bool {
        let Expect::Build(wanted) = &self.expect else { return false };
        build == wanted || build.split_once('+').is_some_and(|(v, f)| v == wanted || f == wanted)
    }

    /// For how long what was done has to hold: at least as long as the takeover bound, since a restarted device votes for nobody
    /// before the refusal window is over, and as a device that was lost is still shown as heard.
    pub fn settles_in(&self, report: &Report) -> Duration {
        self.settle.max(STALE).max(Duration::from_millis(report.takeover_ms_max))
    }

    /// The devices that are updated, in the order of the member list.
    pub fn scope<'a>(&'a self, report: &'a Report) -> impl Iterator<Item = &'a Member> {
        let all = self.only.is_empty();
        report
            .members
            .iter()
            .filter(move |m| if all { m.role != "witness" } else { self.only.contains(&m.device) })
    }

    /// The devices that were named and that the site does not have.
    pub fn strangers(&self, report: &Report) -> Vec<&str> {
        let known = |device: &&str| report.members.iter().any(|m| m.device == *device);
        self.only.iter().map(String::as_str).filter(|device| !known(device)).collect()
    }

    /// Why this device does not show yet what is wanted of it, compared with how it was `before` the command.
    fn lacks(&self, member: &Member, before: Option<&Known>) -> Option<String> {
        let runs = || if member.build.is_empty() { "something unknown" } else { &member.build };
        match (&self.expect, before) {
            (Expect::Any, _) => None,
            (Expect::Build(wanted), _) => {
                (!self.names(&member.build)).then(|| format!("it runs {}, not {wanted}", runs()))
            }
            // Without a word of how it was, anything is something else.
            (Expect::Changed | Expect::Restarted, None) => None,
            (Expect::Changed, Some(before)) => {
                // A sidecar knows its own version before its workload's fingerprint.
                let whole = member.build.contains('+') || !before.build.contains('+');
                (member.build == before.build || !whole)
                    .then(|| format!("what it runs has not changed: {}", runs()))
            }
            (Expect::Restarted, Some(before)) => (member.incarnation == before.incarnation)
                .then(|| "its sidecar has not started again".to_owned()),
        }
    }
}

/// What is due now. Of all that it may answer, [`Step::Update`] and [`Step::HandOver`] alone ask for a deed, never two at
/// once and neither twice; whoever does it tells `memory` first.
pub fn next_step(report: &Report, goal: &Goal, memory: &Memory) -> Step {
    if let Some(known) = memory.site.as_ref().filter(|site| **site != report.site) {
        return Step::Stop(format!("{} answers for the site {}, not {known}", report.device, report.site));
    }
    let due = memory.due(report, goal);
    if let Some(why) = hopeless(report, goal, memory, &due) {
        return Step::Stop(why);
    }
    if let Some(owner) =
        owner(report).filter(|owner| memory.has_handed_over && due.iter().any(|d| d == owner))
    {
        // Whoever was given the workload did not keep it: what it runs now may be why.
        return Step::Stop(format!(
            "{owner} owns again, and is not updated ({}): it goes on, and is left alone",
            report.owner.reason
        ));
    }
    if let Some(why) = memory.unsettled(report, goal) {
        return Step::Wait(why);
    }
    // Also a device that was left out because it runs what is wanted, or was touched long ago, has to be of use.
    for member in goal.scope(report).filter(|m| !due.contains(&m.device)) {
        if let Err(why) = well(report, member) {
            return Step::Wait(format!("{} is updated, and {why}", member.device));
        }
    }
    let Some(owner) = owner(report) else {
        return if due.is_empty() && memory.touched.is_empty() {
            Step::Done
        } else {
            Step::Wait(format!("nobody is known to own now: {}", report.owner.reason))
        };
    };
    let Some(first) = due.iter().find(|device| *device != owner).or(due.first()) else { return Step::Done };
    if let Err(why) = calm(report) {
        return Step::Wait(why);
    }
    if report.members.iter().any(|m| m.device == *first && is_half_known(report, goal, m)) {
        return Step::Wait(format!(
            "the fingerprint of what {first} runs is not known yet; --expect restarted and any do not ask for it"
        ));
    }
    if first != owner {
        return match may_lose(report, first) {
            Ok(()) => Step::Update(first.clone()),
            Err(why) => Step::Wait(format!("{first} cannot be spared: {why}")),
        };
    }
    match heir(report, goal, &due, owner) {
        Ok(to) => Step::HandOver { from: owner.to_owned(), to },
        Err(why) => Step::Wait(why),
    }
}

/// What would be done from here if nothing came between: devices, and the handover before the owner's turn.
pub fn outline(report: &Report, goal: &Goal, memory: &Memory) -> Vec<Step> {
    let due = memory.due(report, goal);
    let owner = owner(report);
    let standbys = due.iter().filter(|device| Some(device.as_str()) != owner);
    let mut steps: Vec<Step> = standbys.cloned().map(Step::Update).collect();
    if let Some(owner) = owner.filter(|owner| due.iter().any(|device| device == owner)) {
        // Whoever has been updated by then may own.
        if let Ok(to) = heir(report, goal, &[], owner) {
            steps.push(Step::HandOver { from: owner.to_owned(), to });
        }
        steps.push(Step::Update(owner.to_owned()));
    }
    steps
}

/// Why waiting would not help.
fn hopeless(report: &Report, goal: &Goal, memory: &Memory, due: &[String]) -> Option<String> {
    if due.is_empty() || report.members.is_empty() {
        return None;
    }
    if report.members.len() < 3 {
        return Some(format!(
            "a site of {} cannot lose any device without its workload standing still: update it by hand",
            report.members.len()
        ));
    }
    if goal.expect != Expect::Changed || !memory.touched.is_empty() {
        return None;
    }
    let heard = goal.scope(report).filter(|m| m.reachable && !is_half_known(report, goal, m));
    let builds: BTreeSet<&str> = heard.map(|m| m.build.as_str()).collect();
    if builds.len() < 2 {
        return None;
    }
    let builds: Vec<&str> = builds.into_iter().collect();
    Some(format!(
        "the devices run {} already: name the one that all shall run, with --expect",
        builds.join(" and ")
    ))
}

/// A sidecar knows its own version before its workload's fingerprint. Where the others' are known, this one's is waited for.
fn is_half_known(report: &Report, goal: &Goal, member: &Member) -> bool {
    let compares = matches!(goal.expect, Expect::Changed | Expect::Build(_));
    compares && !member.build.contains('+') && goal.scope(report).any(|m| m.build.contains('+'))
}

fn owner(report: &Report) -> Option<&str> {
    report.owner.device.as_deref().filter(|_| report.owner.known)
}

/// Whether nothing else is under way.
fn calm(report: &Report) -> Result<(), String> {
    if !report.quorum {
        return Err(format!("{} does not hear a majority", report.device));
    }
    if let Some(paused) = &report.orders.paused {
        let why = if paused.reason.is_empty() { String::new() } else { format!(" ({})", paused.reason) };
        return Err(format!("the site is paused by {}{why}: nobody could take over", paused.actor));
    }
    match report.conditions.iter().find(|c| c.name == "member.rejoining") {
        Some(rejoining) => Err(format!("a member is being taken in: {}", rejoining.detail)),
        None => Ok(()),
    }
}

/// Whether the workload runs on if this standby is gone for a while.
fn may_lose(report: &Report, device: &str) -> Result<(), String> {
    let losses = plan(report).devices;
    let loss = losses.iter().find(|loss| loss.device == device).ok_or("it is not a member")?;
    match loss.effect {
        Effect::GoesOn if report.devices_may_fail > 0 => Ok(()),
        Effect::GoesOn => Err("the site can lose no device now".into()),
        // Whatever is wrong with it, a command that cannot be compared with what was before is not run.
        Effect::Nothing => Err("it is not heard".into()),
        _ => Err(loss.text.clone()),
    }
}

/// Whether a device is back: heard, with a vote that counts, and free to own, unless somebody keeps it from that on purpose. If it owns,
/// its workload works.
fn well(report: &Report, member: &Member) -> Result<(), String> {
    if !member.reachable {
        return Err("it is not heard".into());
    }
    if !member.votes {
        return Err("its vote does not count yet".into());
    }
    if owner(report) == Some(member.device.as_str())
        && let Some(wrong) = &report.owner.workload_wrong
    {
        return Err(format!("its workload does not work: {wrong}"));
    }
    let meant = member.role == "witness" || report.orders.drained.contains_key(&member.device);
    // During an update builds differ. Where those that do stay away from the ownership, a handover that names them moves it all
    // the same.
    if member.fit || meant || report.orders.paused.is_some() || member.build_blocks {
        return Ok(());
    }
    Err(format!("it may not own: {}", member.unfit_reason.as_deref().unwrap_or("no reason given")))
}

/// Who is handed the workload: of those that are updated, the preferred one, then who sees most of the plant. If the owner
/// alone is updated, any other.
///
/// # Errors
/// Why nobody can be.
fn heir(report: &Report, goal: &Goal, due: &[String], owner: &str) -> Result<String, String> {
    let scope: BTreeSet<&str> = goal.scope(report).map(|m| m.device.as_str()).collect();
    let alone = scope.iter().all(|device| *device == owner);
    let updated = |m: &&Member| scope.contains(m.device.as_str()) && !due.contains(&m.device);
    let others = report.members.iter().filter(|m| m.device != owner && (alone || updated(m)));
    let (mut may, mut whys) = (Vec::new(), Vec::new());
    for member in others {
        let barred = member.role == "witness" || report.orders.drained.contains_key(&member.device);
        match well(report, member) {
            Ok(()) if barred => whys.push(format!("{}: it is kept from owning", member.device)),
            Ok(()) => may.push(member),
            Err(why) => whys.push(format!("{}: {why}", member.device)),
        }
    }
    let preferred = report.orders.preferred.as_deref();
    may.sort_by_key(|m| {
        let seen = std::cmp::Reverse(m.plant_seen.unwrap_or(0));
        (!goal.names(&m.build), preferred != Some(m.device.as_str()), seen, &m.device)
    });
    match may.first() {
        Some(first) => Ok(first.device.clone()),
        None if whys.is_empty() => Err(format!("no updated device can take over from {owner}")),
        None => Err(format!("no updated device can take over from {owner} ({})", whys.join("; "))),
    }
}

#[cfg(test)]
mod tests;
