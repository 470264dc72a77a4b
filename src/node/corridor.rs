//! The corridor of every order: who is alive is looked at here, then one command is proposed, and its outcome told.
//!
//! Whether the record takes the command is the record's to say; what it cannot know is who is there and fit. Nothing
//! here is specific to a face: the command line, gRPC and the cloud come the same way.

use std::{sync::PoisonError, time::Duration};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{door::NodeDoor, report::pause_in_words};
use crate::{
    clock::millis,
    epoch::Epoch,
    hub::{BoxFuture, wall},
    id::{DeviceId, SiteId},
    ownership::{
        command::{self, Command, Drain, DrainExactly, LimitTiming, Outcome, SetPreferred},
        record::{Ownership, Record},
    },
    raft::ProposeError,
    reconcile::commands::{CLOCK_MIN_MS, Corridor, Fulfilled, Order, Refusal, Wish},
    workload,
};

/// How long a proposal or a claim may take until whoever asked is told that it is not known what became of it.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a member has to answer that it is there.
const ASKED: Duration = Duration::from_millis(500);

impl NodeDoor {
    fn record(&self) -> std::sync::Arc<Record> {
        self.node.group.record().borrow().record.clone()
    }

    /// Whether a device could own now, as far as this one knows.
    ///
    /// # Errors
    /// Why not.
    fn is_fit(&self, device: &DeviceId) -> Result<(), String> {
        let (roster, now) = (self.node.group.roster(), self.node.clock().now());
        let member =
            roster.site.member(device).ok_or(format!("{device} is not a member of {}", roster.site.id))?;
        if !member.role.may_own() {
            return Err(format!("{device} is a {}: it votes and never owns", member.role));
        }
        if let Some(by) = self.record().drained.get(device) {
            return Err(format!("{device} is drained {by}"));
        }
        if *device == roster.me {
            let unfit = self.node.unfit.borrow().as_ref().map(ToString::to_string);
            return unfit.map_or(Ok(()), Err);
        }
        match roster.contact(device) {
            None => Err(format!("{device} has not been heard")),
            Some(c) if !c.unfit.is_empty() => Err(format!("{device} says: {}", c.unfit)),
            Some(c) if c.may_take_over(now, &self.node.group.timing()) => Ok(()),
            Some(c) => {
                let silent =
                    c.heard.map_or_else(String::new, |h| format!(" for {} ms", now.since(h).as_millis()));
                Err(format!("{device} has not been heard{silent}"))
            }
        }
    }

    fn is_member(&self, device: &DeviceId) -> Result<(), Refusal> {
        let site = &self.node.group.roster().site;
        if site.member(device).is_some() {
            return Ok(());
        }
        let known: Vec<_> = site.members.iter().map(|m| m.device.to_string()).collect();
        Err(Refusal::NoSuchDevice(format!("{device} is not a member of {} ({})", site.id, known.join(", "))))
    }

    /// The first fit device that is chosen among those that `may`.
    fn choose(&self, record: &Record, may: impl Fn(&DeviceId) -> bool) -> Result<DeviceId, Refusal> {
        let mut refusals = Vec::new();
        let roster = self.node.group.roster();
        let seen = |device: &DeviceId| match *device == roster.me {
            true => roster.sight().seen,
            false => roster.contact(device).map_or(0, |contact| contact.sight.seen),
        };
        let mut candidates = record.candidates();
        // Who sees more of the plant comes first, of equals the first candidate.
        candidates.sort_by_key(|device| std::cmp::Reverse(seen(device)));
        let others = record.roles.keys().filter(|device| record.drained.contains_key(*device));
        for device in candidates.into_iter().chain(others).filter(|device| may(device)) {
            match self.is_fit(device) {
                Ok(()) => return Ok(device.clone()),
                Err(why) => refusals.push(why),
            }
        }
        if refusals.is_empty() {
            return Err(Refusal::Unfit("nobody would be left: each device that may own is named".into()));
        }
        Err(Refusal::Unfit(format!("no other device can take over: {}", refusals.join("; "))))
    }

    /// An order that a leader without a majority takes in could take effect long after whoever gave it was told that it
    /// had not. Who was not heard a moment ago is asked.
    async fn hears_a_quorum(&self) -> Result<(), Refusal> {
        let (group, clock) = (&self.node.group, self.node.clock());
        let recent = group.timing().refusal();
        let roster = group.roster();
        if !roster.hears_a_quorum(clock.now(), recent) {
            let others = roster.site.members.iter().filter(|member| member.device != roster.me);
            join_all(others.map(|member| group.greet(&member.device, ASKED))).await;
        }
        match roster.hears_a_quorum(clock.now(), recent.max(ASKED * 2)) {
            true => Ok(()),
            false => Err(Refusal::NotNow("this device does not hear from a majority of the site".into())),
        }
    }

    /// In a paused site nobody ends an ownership but the owner itself. One that is gone would be waited for in vain.
    async fn hands_over(&self, record: &Record) -> Result<(), Refusal> {
        let Some(pause) = &record.paused else { return Ok(()) };
        let gone = match &record.owner {
            Some(owner) => self.is_gone(owner).await,
            None => absent(record),
        };
        match gone {
            None => Ok(()),
            Some(gone) => Err(Refusal::NotNow({
                let (pause, waits) = (pause_in_words(pause), waits_for_resume(record));
                format!("{gone}, and the site is paused {pause}, so {waits}")
            })),
        }
    }

    /// Why this owner will not hand over, if it surely does not.
    async fn is_gone(&self, owner: &Ownership) -> Option<String> {
        let (group, device) = (&self.node.group, &owner.device);
        let roster = group.roster();
        let (life, says) = if *device == roster.me {
            let unfit = self.node.unfit.borrow().as_ref().map(ToString::to_string);
            (Some(roster.incarnation), unfit.unwrap_or_default())
        } else {
            // Once more, for a message that was lost.
            if !group.greet(device, ASKED).await && !group.greet(device, ASKED).await {
                return Some(format!("{device}, which owned last, does not answer"));
            }
            roster.contact(device).map(|contact| (contact.incarnation, contact.unfit))?
        };
        // In the life in which it claimed it gives up when it is asked to, fit or not.
        let anew = life != Some(owner.incarnation) && !says.is_empty();
        anew.then(|| format!("{device}, which owned last, has started again and says: {says}"))
    }

    async fn fulfil(&self, wish: Wish) -> Result<Fulfilled, Refusal> {
        let mut watch = self.node.group.record();
        let before = watch.borrow_and_update().record.clone();
        if let Some(epoch) = wish.id.and_then(|id| before.executed(id)) {
            let owner = done_before(&wish.order, &before, epoch)?;
            return Ok(Fulfilled { repeated: true, epoch, owner });
        }
        self.hears_a_quorum().await?;
        if let Some(base) = wish.base.filter(|base| *base != before.epoch) {
            return Err(Refusal::Stale(command::Refusal::Superseded { now: before.epoch, base }.to_string()));
        }
        if let Order::Transfer(_) = wish.order {
            self.hands_over(&before).await?;
        }
        let owner = before.owner.as_ref().map(|owner| owner.device.clone());
        let order = wish.order.clone();
        // A wish with a number is remembered by the record, or its repeat would move the ownership later.
        let moves = wish.id.is_some() || before.is_handing_over();
        let (command, then) = self.command(wish, &before)?;
        if let (false, Then::Owns(to)) = (moves, &then)
            && before.is_held_by(to)
        {
            return Ok(Fulfilled { repeated: true, epoch: before.epoch, owner });
        }
        let done = match self.node.group.propose(command, LIMIT).await {
            Ok(Outcome::Done { epoch }) => Fulfilled { repeated: false, epoch, owner: None },
            Ok(Outcome::Repeated { epoch }) => {
                let owner = done_before(&order, &watch.borrow().record, epoch)?;
                return Ok(Fulfilled { repeated: true, epoch, owner });
            }
            Ok(Outcome::Refused(why)) => return Err(refusal(&why)),
            Ok(Outcome::Nothing) => return Err(Refusal::Unconfirmed("the leader said nothing of it".into())),
            Err(e @ ProposeError::NoAnswer) => return Err(Refusal::Unconfirmed(e.to_string())),
            Err(e) => return Err(Refusal::NotNow(e.to_string())),
        };
        let limit = LIMIT + *workload::STOP_TIMEOUT.end();
        match then {
            Then::Nothing => Ok(done),
            Then::Moves(from) if owner != Some(from.clone()) => Ok(done),
            Then::Moves(from) => {
                let moved = watch.wait_for(|a| {
                    let record = &a.record;
                    record.paused.is_some() || record.owner.as_ref().is_some_and(|owner| owner.device != from)
                });
                let Ok(Ok(applied)) = tokio::time::timeout(limit, moved).await else {
                    return Err(Refusal::Unconfirmed(format!(
                        "{from} is drained, and no other device owns yet"
                    )));
                };
                let owner = applied.record.owner.as_ref().map(|owner| owner.device.clone());
                Ok(Fulfilled { epoch: applied.record.epoch, owner, ..done })
            }
            Then::Owns(to) => {
                let next = watch.wait_for(|a| a.record.epoch > before.epoch && a.record.owner.is_some());
                let Ok(Ok(applied)) = tokio::time::timeout(limit, next).await else {
                    return Err(Refusal::Unconfirmed(format!("{to} has not claimed yet")));
                };
                match applied.record.owner.as_ref().map(|owner| owner.device.clone()) {
                    Some(device) if device == to => {
                        Ok(Fulfilled { epoch: applied.record.epoch, owner: Some(device), ..done })
                    }
                    Some(device) => {
                        let why = "it did not take over in time, or another handover came between";
                        Err(Refusal::NotNow(format!("{device} owns now, not {to}: {why}")))
                    }
                    None => Err(Refusal::Unconfirmed("nobody owns now".into())),
                }
            }
        }
    }

    /// The command that the wish comes to, if those who are there allow it, and what its end is.
    fn command(&self, wish: Wish, before: &Record) -> Result<(Command, Then), Refusal> {
        let Wish { id, order: what, reason, actor, base, expires_unix_ms } = wish;
        let id = id.unwrap_or_else(|| self.dice.lock().unwrap_or_else(PoisonError::into_inner).throw());
        let at_unix_ms = self.node.clock().wall_ms();
        let owner = before.owner.as_ref().map(|owner| &owner.device);
        let until_unix_ms = None;
        let order = command::Order { id, actor, reason, at_unix_ms, base, expires_unix_ms, until_unix_ms };
        Ok(match what {
            Order::Transfer(to) => {
                let to = match to {
                    None => self.choose(before, |device| Some(device) != owner)?,
                    Some(to) => {
                        self.is_member(&to)?;
                        self.is_fit(&to).map_err(Refusal::Unfit)?;
                        to
                    }
                };
                let command::Order { actor, reason, .. } = order;
                let transfer = command::Transfer {
                    id,
                    to: to.clone(),
                    base: base.unwrap_or(before.epoch),
                    reason,
                    actor,
                    at_unix_ms,
                    expires_unix_ms,
                };
                (Command::Transfer(transfer), Then::Owns(to))
            }
            Order::Pause(lasts) => {
                let until_unix_ms = lasts.map(|lasts| end_of_pause(at_unix_ms, lasts)).transpose()?;
                (Command::Pause(command::Order { until_unix_ms, ..order }), Then::Nothing)
            }
            Order::Resume => (Command::Resume(order), Then::Nothing),
            Order::Drain(device) => {
                self.is_member(&device)?;
                if !before.drained.contains_key(&device) {
                    self.choose(before, |other| *other != device)?;
                }
                (Command::Drain(Drain { order, device: device.clone() }), Then::Moves(device))
            }
            Order::Undrain(device) => {
                self.is_member(&device)?;
                (Command::Undrain(Drain { order, device }), Then::Nothing)
            }
            Order::DrainExactly(devices) => {
                devices.iter().try_for_each(|device| self.is_member(device))?;
                if devices.iter().any(|device| !before.drained.contains_key(device)) {
                    self.choose(before, |other| !devices.contains(other))?;
                }
                let devices = devices.into_iter().collect();
                (Command::DrainExactly(DrainExactly { order, devices }), Then::Nothing)
            }
            Order::Prefer(device) => {
                device.as_ref().map_or(Ok(()), |device| self.is_member(device))?;
                (Command::SetPreferred(SetPreferred { order, device }), Then::Nothing)
            }
            Order::Timing(least) => (Command::LimitTiming(LimitTiming { order, least }), Then::Nothing),
        })
    }
}

/// Why nobody is there to hand over, if nobody owns and nobody was named to own next.
pub(super) fn absent(record: &Record) -> Option<String> {
    let named = record.released.as_ref().is_some_and(|released| released.successor.is_some());
    match (&record.owner, record.history.back()) {
        (Some(_), _) => None,
        (None, _) if named => None,
        (None, Some(last)) => Some(format!("{}, which owned last, has given up", last.device)),
        (None, None) => Some("nobody has owned yet".into()),
    }
}

/// What a paused site without an owner waits for.
pub(super) fn waits_for_resume(record: &Record) -> String {
    let last = record.history.back().map(|last| &last.device);
    let others = record.candidates().iter().any(|device| Some(*device) != last);
    let also = if others { "" } else { ", once one is undrained (`quorate undrain`)" };
    let back = last.map_or_else(String::new, |last| format!(", or bring {last} back"));
    format!("no other takes over: `quorate resume` lets one{also}{back}")
}

/// When a pause ends that begins now. A device whose clock was never set cannot tell: its pause would be over at once.
fn end_of_pause(now: u64, lasts: Duration) -> Result<u64, Refusal> {
    if now < CLOCK_MIN_MS {
        let shown = wall::rfc3339(now);
        let why = format!(
            "this device's clock shows {shown}, so it cannot tell when the pause ends: pause without an end, or ask another device"
        );
        return Err(Refusal::NotNow(why));
    }
    Ok(now.saturating_add(millis(lasts)))
}

/// What came of an order that was executed at `epoch`: who owns now, if it was about that.
///
/// # Errors
/// A handover that came to nothing, or is still under way.
fn done_before(order: &Order, record: &Record, epoch: Epoch) -> Result<Option<DeviceId>, Refusal> {
    let Order::Transfer(to) = order else { return Ok(None) };
    if record.is_handing_over() {
        return Err(Refusal::Unconfirmed("the handover is under way".into()));
    }
    let next = record.history.iter().find(|change| Some(change.epoch) == epoch.next());
    match (next.map(|change| &change.device), to, &record.owner) {
        (Some(device), Some(to), _) if device != to => {
            Err(Refusal::Stale(format!("{device} owned next, not {to}, which did not take over in time")))
        }
        (Some(device), ..) => Ok(Some(device.clone())),
        (None, _, Some(owner)) if record.epoch == epoch => {
            Err(Refusal::Stale(format!("the handover came to nothing: {} goes on", owner.device)))
        }
        (None, _, None) if record.epoch == epoch => Err(Refusal::Unconfirmed("nobody owns now".into())),
        // So much has happened since that it is not known any more.
        (None, ..) => Ok(None),
    }
}

/// What is waited for once the command is committed.
enum Then {
    Nothing,
    /// This device owns no more, if it did.
    Moves(DeviceId),
    /// This device owns.
    Owns(DeviceId),
}

fn refusal(why: &command::Refusal) -> Refusal {
    let text = why.to_string();
    match why {
        command::Refusal::NotAMember { .. } => Refusal::NoSuchDevice(text),
        command::Refusal::Superseded { .. } | command::Refusal::OtherTiming { .. } => Refusal::Stale(text),
        command::Refusal::NoOwner
        | command::Refusal::Paused
        | command::Refusal::EpochsUsedUp
        | command::Refusal::EpochTooFar { .. }
        | command::Refusal::TooManyCommands { .. } => Refusal::NotNow(text),
        command::Refusal::Witness { .. }
        | command::Refusal::OwnsAlready { .. }
        | command::Refusal::ImpossibleTiming
        | command::Refusal::Drained { .. }
        | command::Refusal::BuildDiffers { .. }
        | command::Refusal::NoBuild
        | command::Refusal::NoneLeft => Refusal::Unfit(text),
    }
}

impl Corridor for NodeDoor {
    fn site(&self) -> &SiteId {
        &self.node.group.roster().site.id
    }

    fn epoch(&self) -> Epoch {
        self.record().epoch
    }

    fn status(&self) -> Value {
        serde_json::to_value(self.make_report()).unwrap_or(Value::Null)
    }

    fn why(&self) -> Value {
        let report = self.make_report();
        let decision = report.last_decision.unwrap_or_default();
        json!({
            "decision": decision.reason,
            "decided_unix_ms": decision.unix_ms,
            "changes": serde_json::to_value(report.history).unwrap_or(Value::Null),
        })
    }

    fn executed(&self, id: u64) -> Option<Epoch> {
        self.record().executed(id)
    }

    fn order(&self, wish: Wish) -> BoxFuture<'_, Result<Fulfilled, Refusal>> {
        Box::pin(self.fulfil(wish))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_paused_site_without_owner_waits_for() {
        let device = |name: &str| DeviceId::new(name).expect("a name");
        let site = crate::site::Site {
            id: SiteId::new("plant-7").expect("a name"),
            members: ["edge-1", "edge-2"]
                .map(|name| crate::site::Member {
                    device: device(name),
                    address: format!("{name}:7600"),
                    role: crate::site::Role::Voter,
                })
                .into(),
            timing: crate::timing::Timing::new(&crate::timing::Settings::default()).expect("holds"),
        };
        let mut record = Record::new(&site);
        assert_eq!(absent(&record).as_deref(), Some("nobody has owned yet"));
        assert_eq!(waits_for_resume(&record), "no other takes over: `quorate resume` lets one");
        let claim = command::Claim {
            device: device("edge-1"),
            incarnation: crate::id::Incarnation(1),
            base: Epoch::ZERO,
            at_unix_ms: 0,
            seal: None,
            proof: None,
        };
        record.apply(&Command::Claim(claim));
        assert_eq!(absent(&record), None, "whether it is there, its device must say");
        assert!(waits_for_resume(&record).ends_with("lets one, or bring edge-1 back"));
        let order = command::Order {
            id: 1,
            actor: "ann".into(),
            reason: String::new(),
            at_unix_ms: 0,
            base: None,
            expires_unix_ms: 0,
            until_unix_ms: None,
        };
        record.apply(&Command::Drain(Drain { order, device: device("edge-2") }));
        assert!(waits_for_resume(&record).contains("once one is undrained (`quorate undrain`), or bring"));
    }

    #[test]
    fn a_clock_that_was_never_set_ends_no_pause() {
        let half_an_hour = Duration::from_secs(1800);
        assert_eq!(end_of_pause(1_800_000_000_000, half_an_hour), Ok(1_800_001_800_000));
        assert_eq!(end_of_pause(u64::MAX, half_an_hour), Ok(u64::MAX));
        assert!(
            matches!(end_of_pause(60_000, half_an_hour), Err(Refusal::NotNow(why)) if why.contains("1970"))
        );
    }
}
