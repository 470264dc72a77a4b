//! Acts on what was measured or ordered: a strained or drained device gives way, a slow site gets a wider timing.
//!
//! Twice a second, and when the record changes, it asks [`advise`]. A strained device says so to the others, and is unfit as
//! long as another is fit; if none is, it keeps the ownership, for a slow owner is better than none. So does a drained
//! one, but it begins no ownership; and so does one on which the workload fails, or that is worse off than another
//! ([`Moves`]). While the site is paused none gives up what it owns. The leader that owns proposes changes of
//! timing, and settles one that made it narrower once no wider lease can run any more.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::meter::Meter;
use crate::{
    clock::{Clock, Moment, sleep_until},
    condition::Condition,
    id::DeviceId,
    ownership::{
        command::{Command, SettleTiming},
        moves::{Moves, Outlook, Policy},
        pace::CONFIGURED,
        record::Record,
        view::{Standing, Unfit},
        vitals::{Advice, COOL_DOWN, Situation, Strain, advise},
    },
    raft::{Group, peer::Contact, vote_guard::Ballot},
    timing::Timing,
    workload::Observed,
};

const PERIOD: Duration = Duration::from_millis(500);
/// How long a proposal may take.
const PROPOSE_LIMIT: Duration = Duration::from_secs(10);

/// After many changes within the hour an owner that cannot work has to be so for this long in all before it gives way: what comes and goes
/// on all devices would pass the workload round and round.
const BEARS: Duration = Duration::from_secs(10);

/// Why the workload cannot work on this device: what has failed, and why. Empty if it can.
pub type Ailments = BTreeMap<&'static str, String>;

/// The loop and what it needs.
pub struct PaceLoop {
    /// The group.
    pub group: Group,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// What was measured.
    pub meter: Meter,
    /// Why this device must not own, if so.
    pub unfit: watch::Sender<Option<Unfit>>,
    /// Why the workload cannot work on this device, by what was found to fail.
    pub ailments: watch::Receiver<Ailments>,
    /// What is observed of the workload.
    pub observed: watch::Receiver<Observed>,
    /// What the workload fails on this device, if it does.
    pub failing: watch::Receiver<Option<String>>,
    /// How willingly the ownership moves.
    pub policy: watch::Receiver<Policy>,
    /// What would have moved it, if there had not been so many changes.
    pub held: watch::Sender<Option<String>>,
    /// Whether this device is strained, whatever follows from it.
    pub strain: watch::Sender<Option<Strain>>,
}

/// Since when things are as they are. Seen late, never early.
#[derive(Default)]
struct Steady {
    /// Led with this ballot.
    led: Option<(Ballot, Moment)>,
    /// The timing has this version.
    version: Option<(u64, Moment)>,
    /// This device owns or does not.
    owns: Option<(bool, Moment)>,
    /// For how long the workload could not work here, less the time that it could since.
    unwell: Unwell,
    /// What the others were told.
    told: Option<Words>,
    /// What speaks for another owner.
    moves: Moves,
}

/// For how long something was so, of late: what comes and goes adds up.
#[derive(Default)]
struct Unwell {
    looked: Moment,
    is: bool,
    sum: Duration,
}

impl Unwell {
    fn look(&mut self, now: Moment, is: bool) -> Duration {
        let passed = now.since(std::mem::replace(&mut self.looked, now));
        let was = std::mem::replace(&mut self.is, is);
        self.sum = if was { (self.sum + passed).min(BEARS) } else { self.sum.saturating_sub(passed) };
        self.sum
    }
}

/// Why this device had better not own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    Unwell,
    NotStopped,
    Failing,
    Drained,
    Strained,
}

/// Remembers since when a thing has been what it is now.
fn since<T: PartialEq>(memory: &mut Option<(T, Moment)>, thing: T, now: Moment) -> Moment {
    match memory {
        Some((old, since)) if *old == thing => *since,
        _ => {
            *memory = Some((thing, now));
            now
        }
    }
}

/// Whether it was heard so lately that it is surely there, if it is the owner or this device is: an owner asks again and again.
fn is_heard(contact: &Contact, now: Moment, timing: &Timing) -> bool {
    contact.heard.is_some_and(|heard| now.since(heard) < timing.refusal())
}

impl PaceLoop {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        if !self.come_of_age(&stop).await {
            return;
        }
        let mut steady = Steady::default();
        let (mut record, mut ailments) = (self.group.record(), self.ailments.clone());
        let mut failing = self.failing.clone();
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
                Ok(()) = record.changed() => {}
                Ok(()) = ailments.changed() => {}
                Ok(()) = failing.changed() => {}
            }
            if let Some(command) = self.look(&mut steady) {
                let proposal = self.group.propose(command, PROPOSE_LIMIT);
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    outcome = proposal => tracing::debug!(?outcome, "proposed another timing"),
                }
            }
        }
    }

    /// A device that has just started may not even vote for itself, so until then it is nobody to hand over to.
    async fn come_of_age(&self, stop: &CancellationToken) -> bool {
        let until = self.clock.now() + self.group.boot_refusal();
        self.group.roster().declare_unfit("it has just started and may not vote yet");
        tokio::select! {
            biased;
            () = stop.cancelled() => return false,
            () = sleep_until(self.clock.as_ref(), until) => {}
        }
        let why = self.unfit.borrow().as_ref().map(ToString::to_string).unwrap_or_default();
        self.group.roster().declare_unfit(&why);
        true
    }

    /// Looks at everything once; the command to propose, if any.
    fn look(&self, steady: &mut Steady) -> Option<Command> {
        let now = self.clock.now();
        let (role, applied) = (self.group.role().borrow().clone(), self.group.record().borrow().clone());
        let (roster, timing) = (self.group.roster(), self.group.timing());
        let (pace, configured) = (&applied.record.pace, &roster.site.timing);
        let owns = applied.record.owned_by(&roster.me, roster.incarnation).is_some();
        let leads = role.standing == Standing::Leader;
        let led = since(&mut steady.led, role.ballot, now);
        let changed = since(&mut steady.version, pace.version, now);
        let owned = since(&mut steady.owns, owns, now);
        let fit = self.fit_others(&applied.record, now);
        // An owner hears the others all the time. Who is lost is fit for some time yet, but nobody to give way to.
        let (any_fit, others) = (!fit.is_empty(), fit.into_iter());
        let others = others.filter(|(_, contact)| is_heard(contact, now, &timing));
        let others: BTreeMap<_, _> = others.map(|(device, contact)| (device, contact.sight)).collect();
        let other_fit = if owns { !others.is_empty() } else { any_fit };
        self.meter.note(|v| v.write.note(now, self.group.slowest_write()));
        let Advice { strain, stretch } = advise(
            &self.meter.read(),
            &Situation {
                now,
                timing: &timing,
                configured,
                pace,
                steady_since: (owns && leads).then(|| led.max(changed).max(owned)),
                strained: self.strain.borrow().is_some(),
                other_fit,
                least: applied.record.least_stretch.unwrap_or(CONFIGURED),
            },
        );
        // An ownership that has only just begun is not given up again for this.
        let settled = !owns || now.since(owned) >= COOL_DOWN;
        let paused = applied.record.paused.is_some();
        let drained = applied.record.drained.get(&roster.me).map(|by| Unfit::Drained(by.to_string()));
        let unwell = self.ailments.borrow().iter().next().map(|(_, why)| Unfit::Unwell(why.clone()));
        let (failing, policy) = (self.failing.borrow().clone(), self.policy.borrow().clone());
        let moves = steady.moves.look(&Outlook {
            now,
            unix_ms: self.clock.wall_ms(),
            policy: &policy,
            record: &applied.record,
            me: &roster.me,
            owns: owns.then_some(applied.record.epoch),
            sight: roster.sight(),
            others: &others,
            failing: failing.as_deref(),
        });
        let bears = steady.unwell.look(now, unwell.is_some()) < BEARS && owns && steady.moves.spent(&policy);
        let borne = unwell
            .as_ref()
            .filter(|_| bears)
            .map(|why| format!("{why}; this is borne for {} s", BEARS.as_secs()));
        self.hold(borne.or(moves.held));
        let gives_way =
            if owns { moves.gives_way } else { failing.clone().filter(|_| other_fit) }.map(Unfit::GivesWay);
        let goes = match &drained {
            _ if unwell.is_some() && !bears => unwell.clone(),
            Some(_) if !applied.record.goes_on(&roster.me) || (other_fit && !paused) => drained.clone(),
            _ if gives_way.is_some() => gives_way,
            _ => strain.filter(|_| other_fit && settled && !(owns && paused)).map(Unfit::Strained),
        };
        let failing = failing.map(Unfit::GivesWay);
        // Nobody gives way to a device that may not claim before its own workload's end is confirmed, which may be never.
        let stopped = owns || *self.observed.borrow() == Observed::Stopped;
        self.declare(steady, (strain, stopped), unwell.as_ref().or(failing.as_ref()).or(drained.as_ref()));
        self.give_way(strain, goes);
        if !leads {
            return None;
        }
        if let Some((stretch, reason)) = stretch {
            tracing::info!(stretch, "proposing another timing: {reason}");
            return Some(Command::SetTiming(pace.change(configured, stretch, reason, self.clock.wall_ms())));
        }
        // Every lease asked for with a wider timing has ended: this leader's own, and those before its election.
        let certain = led.max(changed) + pace.widest();
        (pace.settling() && now >= certain)
            .then_some(Command::SettleTiming(SettleTiming { base: pace.version }))
    }

    /// The other devices that could own now. An owner that is not heard any more is lost, whatever it said last.
    fn fit_others(&self, record: &Record, now: Moment) -> BTreeMap<DeviceId, Contact> {
        let (roster, timing) = (self.group.roster(), self.group.timing());
        let others = record.candidates().into_iter().filter(|device| **device != roster.me);
        let fit = others.filter_map(|device| {
            let contact = roster.contact(device).filter(|c| c.may_take_over(now, &timing))?;
            let there = !record.is_held_by(device) || is_heard(&contact, now, &timing);
            there.then(|| (device.clone(), contact))
        });
        fit.collect()
    }

    /// Says what would have moved the ownership, or that nothing would.
    fn hold(&self, held: Option<String>) {
        self.held.send_if_modified(|old| {
            let (begins, ends) = (old.is_none() && held.is_some(), old.is_some() && held.is_none());
            let condition = Condition::BudgetSpent.name();
            match &held {
                Some(why) if begins => tracing::warn!(condition, "this device goes on owning: {why}"),
                None if ends => tracing::info!(condition, "over"),
                _ => {}
            }
            *old = held;
            begins || ends
        });
    }

    /// What the others are told of this device, once it changes.
    fn declare(&self, steady: &mut Steady, (strain, stopped): (Option<Strain>, bool), unfit: Option<&Unfit>) {
        let words = match (unfit, strain) {
            _ if !stopped => Some((Words::NotStopped, "its workload is not confirmed stopped".to_owned())),
            (Some(why @ Unfit::Unwell(_)), _) => Some((Words::Unwell, why.to_string())),
            (Some(why @ Unfit::GivesWay(_)), _) => Some((Words::Failing, why.to_string())),
            (Some(why), _) => Some((Words::Drained, why.to_string())),
            (None, Some(strain)) => Some((Words::Strained, strain.to_string())),
            (None, None) => None,
        };
        let kind = words.as_ref().map(|(kind, _)| *kind);
        // Who leaves, or never owns, has said so.
        let silent =
            matches!(*self.unfit.borrow(), Some(Unfit::Witness | Unfit::Leaving | Unfit::DiskFailed));
        if kind != steady.told && !silent {
            let fails = [kind, steady.told].contains(&Some(Words::Failing));
            steady.told = kind;
            self.group.roster().declare_unfit(&words.map_or_else(String::new, |(_, words)| words));
            if fails {
                self.group.greet_all();
            }
        }
    }

    /// Tells the others of a strain that begins or is over, and this device's other loops why it gives way, if it does.
    fn give_way(&self, strain: Option<Strain>, goes: Option<Unfit>) {
        let begun = strain.is_some();
        if self.strain.borrow().is_some() != begun {
            match &strain {
                Some(strain) => {
                    tracing::warn!(condition = "device.strained", "this device is strained: {strain}")
                }
                None => tracing::info!(condition = "device.strained", "over: this device keeps up again"),
            }
        }
        // Pushed, for what others send here need not say how fit they are, and each must know it of the others: strained
        // devices that take each other for fit would leave the site without an owner.
        if begun || self.strain.borrow().is_some() {
            self.group.greet_all();
        }
        self.strain.send_replace(strain);
        self.unfit.send_if_modified(|unfit| {
            let changed = match (&*unfit, &goes) {
                (Some(Unfit::Witness | Unfit::Leaving | Unfit::DiskFailed), _) => false,
                (Some(Unfit::Strained(_)), Some(Unfit::Strained(_))) => false,
                (old, fresh) => old != fresh,
            };
            if changed {
                *unfit = goes;
            }
            changed
        });
    }
}
