//! The report: everything this sidecar knows about its site, put together for a person or a scrape.
//!
//! It is a snapshot that decides nothing. What is said of the owner is the door's answer, and lapses like it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
    time::Duration,
};

use super::{
    corridor::waits_for_resume,
    door::{NodeDoor, Surroundings, answer, own},
    module::ModuleFace,
};
use crate::{
    clock::{Moment, millis},
    condition::{Condition, Raised},
    hub::{MirrorKind, wall},
    id::DeviceId,
    ownership::{
        command::Refusal,
        decide::Reason,
        record::{BuildPolicy, Note, Record},
        told::Work,
        view::Standing,
    },
    raft::{
        members::Members,
        peer::{Roster, VERSION},
        vote_guard::VoteRefusal,
    },
    reconcile::gate,
    status::{door::Answer, report, said},
};

/// For how long a refused sidecar stays a condition.
const KNOCK_SHOWN: Duration = Duration::from_secs(60);
/// After this long without a word a member is silent. Standbys greet each other about every second.
const SILENT: Duration = Duration::from_secs(3);
/// The same for who leads, and asks all members again and again; or twice the refusal window, if that is longer.
const SILENT_TO_LEADER: Duration = Duration::from_millis(700);

impl NodeDoor {
    /// The conditions that hold at this moment.
    pub(super) fn raised(&self) -> Vec<Raised> {
        self.seen().2
    }

    /// The members, how many of them may still fail, and the conditions that hold: what is told of this moment elsewhere.
    pub(super) fn seen(&self) -> (Vec<report::Member>, u32, Vec<Raised>) {
        let now = self.node.clock().now();
        let members = self.members(now);
        let (quorum, may_fail) = self.reserve(&members);
        let known = matches!(answer(&self.node).at(now), Answer::Known { .. });
        let raised = self.conditions(now, quorum, may_fail, known, &members);
        (members, u32::try_from(may_fail).unwrap_or(u32::MAX), raised)
    }

    /// Whether a majority is heard, and how many more devices may fail.
    fn reserve(&self, members: &[report::Member]) -> (bool, usize) {
        let roster = self.node.group.roster();
        let reachable: BTreeSet<_> =
            members.iter().filter(|m| m.reachable).map(|m| m.device.as_str()).collect();
        let in_force = roster.members();
        // A device whose store is not the one that votes is reachable, and its vote is missing all the same.
        let spare = in_force.spare(|node| {
            let device = in_force.nodes.get(node).map(|n| &n.device);
            device.is_some_and(|d| {
                roster.node_of(d) == *node && roster.has_vote(*node) && reachable.contains(d.as_str())
            })
        });
        (spare.is_some(), spare.unwrap_or(0))
    }

    /// The devices whose vote is missing although they may be heard: their disk has failed, or their store is not the one
    /// that votes.
    fn voteless(&self) -> String {
        let roster = self.node.group.roster();
        let in_force = roster.members();
        let voteless = |device: &&DeviceId| !has_vote(roster, &in_force, device);
        let devices = roster.site.members.iter().map(|m| &m.device).filter(voteless);
        devices.map(|d| d.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The snapshot of this moment.
    pub(super) fn make_report(&self) -> report::Report {
        let node = &self.node;
        let now = node.clock().now();
        let roster = node.group.roster();
        let role = node.group.role().borrow().clone();
        let record = node.group.record().borrow().record.clone();
        let mut members = self.members(now);
        let (quorum, may_fail) = self.reserve(&members);
        let answer = answer(node).at(now);
        let mut owner = match &answer {
            Answer::Known { owner, epoch, until, reason } => report::Owner {
                known: true,
                device: owner.as_ref().map(ToString::to_string),
                epoch: epoch.get(),
                valid_for_ms: millis(until.since(now)),
                reason: reason.clone(),
                ..report::Owner::default()
            },
            Answer::Unknown { reason } => {
                report::Owner { reason: reason.clone(), ..report::Owner::default() }
            }
        };
        // A member that has just handed over may not vote either, and is a follower like any other.
        let booting = matches!(
            node.group.guard().may_vote(),
            Err(VoteRefusal::Booting { .. } | VoteRefusal::Barred(_))
        );
        let role = match role.standing {
            Standing::Leader | Standing::NewLeader => report::Role::Leader,
            Standing::Follower if booting && !owner.known => report::Role::Starting,
            Standing::Follower if role.ballot.node == roster.node => report::Role::Candidate,
            Standing::Follower => report::Role::Follower,
        };
        let raised = self.conditions(now, quorum, may_fail, owner.known, &members);
        let told = self.told(&members);
        let conditions = said::conditions(roster.me.as_str(), &raised, &told);
        let mut works: BTreeMap<String, Work> =
            told.iter().filter_map(|(device, told)| Some(((*device).to_owned(), told.work?))).collect();
        works.extend(self.work().map(|work| (roster.me.to_string(), work)));
        let named = |device: &str| works.get(device).map(|work| work.name().to_owned());
        members.iter_mut().for_each(|member| member.workload = named(&member.device));
        if let Some(device) = &owner.device {
            owner.workload = named(device);
            owner.workload_wrong = said::workload_wrong(device, works.get(device).copied(), &conditions);
        }
        report::Report {
            site: roster.site.id.to_string(),
            device: roster.me.to_string(),
            version: VERSION.into(),
            incarnation: roster.incarnation.to_string(),
            uptime_ms: millis(now.since(node.started)),
            epoch: record.epoch.get(),
            role,
            lease_left_ms: own(node, now).map(|held| millis(held.until.since(now))),
            quorum,
            devices_may_fail: u32::try_from(may_fail).unwrap_or(u32::MAX),
            workload: self.workload(),
            probes: node.health.report(),
            orders: orders(&record),
            hub: self.hub(now),
            conditions,
            last_decision: node
                .decided
                .borrow()
                .as_ref()
                .map(|d| report::Decision { reason: d.reason.to_string(), unix_ms: d.unix_ms }),
            timing: node.group.timing().to_string(),
            takeover_ms_max: millis(node.group.timing().takeover_bound()),
            vitals: self.vitals(now),
            history: history(&record),
            knocks: self.knocks(),
            members,
            owner,
        }
    }

    fn members(&self, now: Moment) -> Vec<report::Member> {
        let roster = self.node.group.roster();
        let leads = self.node.group.role().borrow().standing != Standing::Follower;
        let silent = if leads {
            SILENT_TO_LEADER.max(self.node.group.timing().refusal() * 2).min(SILENT)
        } else {
            SILENT
        };
        let record = self.node.group.record().borrow().record.clone();
        let in_force = roster.members();
        let member = |m: &crate::site::Member| {
            let me = m.device == roster.me;
            let contact = roster.contact(&m.device).unwrap_or_default();
            let silence = if me { Some(Duration::ZERO) } else { contact.heard.map(|h| now.since(h)) };
            let reachable = silence.is_some_and(|s| s < silent);
            let mut blocked = false;
            let (says, incarnation) = match me {
                // Nobody tells a device about itself.
                true => {
                    let unfit = self.node.unfit.borrow().as_ref().map(ToString::to_string);
                    (unfit.unwrap_or_default(), Some(roster.incarnation))
                }
                false => (contact.unfit, contact.incarnation),
            };
            let unfit = match (m.role.may_own(), reachable) {
                (false, _) => "a witness votes and never owns".into(),
                (true, false) => "not heard".into(),
                (true, true) => match (record.drained.get(&m.device), record.may_claim(&m.device)) {
                    (Some(by), _) if !record.goes_on(&m.device) => format!("drained {by}"),
                    (_, Err(Refusal::Paused)) => "the site is paused".into(),
                    (None, Err(why @ Refusal::BuildDiffers { .. }))
                        if says.is_empty() && !record.is_held_by(&m.device) =>
                    {
                        blocked = true;
                        why.to_string()
                    }
                    (Some(by), _) if says.is_empty() => format!("drained {by}"),
                    _ => says,
                },
            };
            let sight = if me { roster.sight() } else { contact.sight };
            // Of one that was not heard, what it last said to the site.
            let said = record.builds.get(&m.device).map(|declared| declared.build.clone());
            let build = if contact.version.is_empty() { said.unwrap_or_default() } else { contact.version };
            report::Member {
                plant_seen: (sight.asked > 0).then_some(sight.seen),
                workload: None,
                device: m.device.to_string(),
                address: m.address.clone(),
                role: m.role.to_string(),
                reachable,
                votes: reachable && has_vote(roster, &in_force, &m.device),
                last_heard_ms: silence.map(millis),
                incarnation: incarnation.map_or_else(String::new, |life| life.to_string()),
                build: if me { roster.build() } else { build },
                build_blocks: blocked,
                fit: unfit.is_empty(),
                unfit_reason: (!unfit.is_empty()).then_some(unfit),
            }
        };
        roster.site.members.iter().map(member).collect()
    }

    fn vitals(&self, now: Moment) -> report::Vitals {
        let node = &self.node;
        let (measured, timing) = (node.meter.read(), node.group.timing());
        let owns = own(node, now).is_some();
        report::Vitals {
            stall_ms: millis(measured.late.worst(now, 10)),
            stall_minute_ms: millis(measured.late.worst(now, 60)),
            lease_left_min_ms: owns.then(|| millis(measured.lease_left(now, &timing))),
            round_trip_ms: owns.then(|| millis(measured.round_trip.worst(now, 10))),
            unanswered_percent: owns.then(|| measured.unanswered_percent()),
            write_ms: millis(measured.write.worst(now, 60)),
            stretch_percent: node.group.record().borrow().record.pace.stretch,
            goes_last: node.last.borrow().map(|last| last.to_string()),
        }
    }

    fn hub(&self, now: Moment) -> report::Hub {
        let Surroundings { mirror, module, .. } = &self.surroundings;
        let kind = match (mirror, module) {
            (None, None) => MirrorKind::Off,
            (Some(_), None) => MirrorKind::DeviceTwin,
            (None, Some(_)) => MirrorKind::ModuleTwin,
            (Some(_), Some(_)) => MirrorKind::Both,
        };
        let mut hub = report::Hub {
            mirror: kind.name().into(),
            module: module.as_ref().map(|module| own_twin(module, now)),
            ..report::Hub::default()
        };
        if let Some(mirror) = mirror {
            let state = mirror.state.borrow().clone();
            let applied = self.node.group.record();
            hub.confirmed_epoch =
                applied.borrow().record.mirrored.as_ref().map(|mirrored| mirrored.epoch.get());
            hub.mirrored_by = self.node.mirrored_by().map(|device| device.to_string());
            hub.rolled_back = state.rolled_back;
            hub.name = mirror.name.clone();
            hub.in_sync = state.in_sync;
            hub.lag_ms = millis(state.lag(now));
            hub.last_success_unix_ms = state.last_success_unix_ms;
            hub.devices = state
                .devices
                .iter()
                .map(|(device, d)| report::HubDevice {
                    device: device.to_string(),
                    epoch: d.epoch_confirmed,
                    error: d.error.clone(),
                })
                .collect();
            hub.requests = state.requests;
        } else if let Some(module) = &hub.module {
            // The only twin there is.
            hub.name = module.name.clone();
            hub.in_sync = module.in_sync;
            hub.lag_ms = module.lag_ms;
            hub.last_success_unix_ms = module.last_success_unix_ms;
        }
        hub
    }

    fn knocks(&self) -> Vec<report::Knock> {
        let knocks = self.node.group.roster().knocks();
        let shown = |k: crate::raft::peer::Knock| report::Knock {
            address: k.address,
            device: k.device,
            reason: k.reason,
            count: k.times,
            last_unix_ms: k.last_unix_ms,
        };
        knocks.into_iter().map(shown).collect()
    }

    fn conditions(
        &self,
        now: Moment,
        quorum: bool,
        may_fail: usize,
        owner_known: bool,
        members: &[report::Member],
    ) -> Vec<Raised> {
        let node = &self.node;
        let mut raised = Vec::new();
        let silent: BTreeMap<&str, Option<u64>> =
            members.iter().filter(|m| !m.reachable).map(|m| (m.device.as_str(), m.last_heard_ms)).collect();
        let missing = || {
            let voteless = self.voteless();
            let parts = [
                ("not heard", silent.keys().copied().collect::<Vec<_>>().join(", ")),
                ("without a vote", voteless),
            ];
            let told: Vec<String> = parts
                .iter()
                .filter(|(_, names)| !names.is_empty())
                .map(|(what, names)| format!("{what}: {names}"))
                .collect();
            if told.is_empty() { "the site has too few devices".into() } else { told.join("; ") }
        };
        // Right after a start nobody can have been heard yet.
        let settled = now.since(node.started) > SILENT;
        if settled {
            if !quorum {
                let detail = format!("{}; another device may own", missing());
                raised.push(Raised::new(Condition::QuorumLost, detail));
            } else if may_fail == 0 {
                let detail = missing();
                raised.push(Raised::new(Condition::NoSpare, detail));
            }
            for (device, heard) in &silent {
                let detail = match heard {
                    Some(ms) => format!("{device}: for {} s", ms / 1000),
                    None => format!("{device}: never since this sidecar started"),
                };
                raised.push(Raised::new(Condition::MemberSilent, detail));
            }
        }
        let mut ownerless = self.ownerless.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *if owner_known {
            *ownerless = None;
            &None
        } else {
            ownerless.get_or_insert(now);
            &*ownerless
        };
        drop(ownerless);
        // Without a majority it cannot be known here whether another device owns.
        if settled && quorum && since.is_some_and(|s| now.since(s) > node.group.timing().takeover_bound()) {
            let why = node.decided.borrow().as_ref().map_or_else(String::new, |d| match &d.reason {
                Reason::StandingBy { owner, epoch } => {
                    format!("{owner}, the last one that is known, under epoch {epoch}, is not known to hold its lease")
                }
                other => other.to_string(),
            });
            raised.push(Raised::new(Condition::NoOwner, why));
        }
        let record = node.group.record().borrow().record.clone();
        if let Some(pause) = &record.paused {
            let mut detail = pause_in_words(pause);
            if !owner_known && settled && quorum {
                detail = format!("{detail}; nobody owns, and {}", waits_for_resume(&record));
            }
            raised.push(Raised::new(Condition::SitePaused, detail));
        }
        if let Some(Reason::LeaseLapsed { epoch }) = node.decided.borrow().as_ref().map(|d| d.reason.clone())
        {
            raised.push(Raised::new(Condition::LeaseLapsed, format!("epoch {epoch}")));
        }
        if let Some(failure) = node.group.disk_failed().borrow().as_ref() {
            raised.push(Raised::new(Condition::DiskFailed, failure.error.clone()));
        }
        raised.extend(node.folder.borrow().iter().cloned());
        raised.extend(builds_differ(members, node.builds.policy()));
        let ailing = |(what, why): (&&'static str, &String)| {
            Raised::new(Condition::WorkloadUnhealthy, format!("{what}: {why}"))
        };
        raised.extend(node.ailments.borrow().iter().map(ailing));
        raised.extend(node.health.raised());
        if let Some(strain) = *node.strain.borrow() {
            raised.push(Raised::new(Condition::DeviceStrained, strain.to_string()));
        }
        let pace = node.group.record().borrow().record.pace.clone();
        if node.group.timing() != node.group.roster().site.timing {
            let detail = format!("{} times as long: {}", f64::from(pace.stretch) / 100.0, pace.reason);
            raised.push(Raised::new(Condition::TimingWidened, detail));
        }
        raised.extend(self.surroundings.workload_conditions.borrow().iter().cloned());
        for knock in node.group.roster().knocks() {
            if now.since(knock.last) < KNOCK_SHOWN {
                let name = if knock.device.is_empty() {
                    knock.address.clone()
                } else {
                    format!("{} at {}", knock.device, knock.address)
                };
                raised.push(Raised::new(Condition::PeerRefused, format!("{name}: {}", knock.reason)));
            }
        }
        let contacts = node.group.roster().contacts();
        for contact in contacts.values().filter(|c| !c.refuses.is_empty()) {
            raised.push(Raised::new(Condition::PeerRefused, format!("this sidecar was {}", contact.refuses)));
        }
        for (device, detail) in node.group.roster().rejoining() {
            raised.push(Raised::new(Condition::MemberRejoining, format!("{device}: {detail}")));
        }
        if let Some(mirror) = &self.surroundings.mirror {
            raised.extend(mirror.state.borrow().conditions.iter().cloned());
            raised.extend(node.mirrored_elsewhere());
        }
        if let Some(module) = &self.surroundings.module {
            raised.extend(module.state.borrow().conditions.iter().cloned());
        }
        raised
    }
}

/// Whether the device's store is the one that votes, and may.
fn has_vote(roster: &Roster, in_force: &Members, device: &DeviceId) -> bool {
    let node = roster.node_of(device);
    in_force.is_voter(node) && roster.has_vote(node)
}

/// Who paused the site, why, and until when if it ends by itself.
pub(super) fn pause_in_words(paused: &Note) -> String {
    let ends = paused.until_unix_ms.map(|until| format!(" (until {})", wall::rfc3339(until)));
    format!("{paused}{}", ends.unwrap_or_default())
}

/// Those that may be asked to own shall run the same. Who was not heard yet is not counted.
fn builds_differ(members: &[report::Member], policy: BuildPolicy) -> Option<Raised> {
    let told = members.iter().filter(|m| m.reachable && !m.build.is_empty() && m.role != "witness");
    // A sidecar knows its own version before its workload's fingerprint.
    let told = told.filter(|m| !is_part_of_another(&m.build, members));
    let mut by_build: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    told.for_each(|m| by_build.entry(&m.build).or_default().push(&m.device));
    if by_build.len() < 2 || policy == BuildPolicy::Allow {
        return None;
    }
    let parts: Vec<String> =
        by_build.iter().map(|(build, devices)| format!("{build} on {}", devices.join(", "))).collect();
    let blocked: Vec<&str> = members.iter().filter(|m| m.build_blocks).map(|m| m.device.as_str()).collect();
    let blocked = match blocked.as_slice() {
        [] => String::new(),
        devices => format!("; because of that does not own: {}", devices.join(", ")),
    };
    Some(Raised::new(Condition::BuildDiffers, parts.join("; ") + &blocked))
}

/// Whether this is only the version of what another device runs.
fn is_part_of_another(build: &str, members: &[report::Member]) -> bool {
    members.iter().any(|m| m.build.split_once('+').is_some_and(|(version, _)| version == build))
}

fn orders(record: &Record) -> report::Orders {
    let ordered = |note: &Note| report::Ordered {
        actor: note.actor.clone(),
        reason: note.reason.clone(),
        since_unix_ms: note.at_unix_ms,
        until_unix_ms: note.until_unix_ms,
    };
    report::Orders {
        paused: record.paused.as_ref().map(ordered),
        drained: record.drained.iter().map(|(device, note)| (device.to_string(), ordered(note))).collect(),
        preferred: record.preferred.as_ref().map(ToString::to_string),
        stretch_percent_min: record.least_stretch,
    }
}

fn own_twin(module: &ModuleFace, now: Moment) -> report::HubModule {
    let state = module.state.borrow().clone();
    let gate = module.gate.as_ref().map(gate::Counts::all).into_iter().flatten();
    report::HubModule {
        name: module.name.clone(),
        connected: state.connected,
        in_sync: state.in_sync,
        lag_ms: millis(state.lag(now)),
        epoch: state.epoch_confirmed,
        last_success_unix_ms: state.last_success_unix_ms,
        gate: gate.map(|(fate, count)| (fate.name().to_owned(), count)).collect(),
        requests: state.requests,
    }
}

fn history(record: &Record) -> Vec<report::Change> {
    let shown = |c: &crate::ownership::record::Change| report::Change {
        epoch: c.epoch.get(),
        device: c.device.to_string(),
        cause: c.cause.name().into(),
        actor: c.actor.clone(),
        reason: c.reason.clone(),
        since_unix_ms: c.since_unix_ms,
        until_unix_ms: c.until_unix_ms,
        build: c.build.clone(),
    };
    record.history.iter().rev().map(shown).collect()
}
