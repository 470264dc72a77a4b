//! Connects the module's own link to the node: what this sidecar says of its site, the commands that come in, and the gate.
//!
//! What is said is built from the record, which is agreed, and from this device's own report. Commands go through the same
//! corridor as everybody's (`reconcile/commands.rs`); nothing else that comes in here can move an ownership.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::{Node, door::NodeDoor, report::pause_in_words};
use crate::{
    condition::Condition,
    dice::Dice,
    epoch::Epoch,
    hub::{
        Flag, Published, Settings,
        link::{Call, Module},
        reported::{KEY, Member, Reported},
        twin::{Properties, merge},
        verbs::Allowed,
    },
    ownership::{
        command::{Command, RaiseFloor},
        record::{FLOOR_AHEAD, Record},
    },
    reconcile::{
        commands::{self, execute, is_answered},
        gate::{self, GateLoop},
        mirror::window,
        module::{Desired, Inbox, ModuleLoop, ModuleState},
    },
    site::Role,
};

/// Calls of methods that may wait.
const CALLS: usize = 16;
/// Calls that are dealt with at once: a handover takes its time, and a question shall not wait for it.
const AT_ONCE: usize = 4;
/// Messages for the gate that may wait: as many as a link lets in.
const INPUTS: usize = 64;
/// How often this device's own state is looked at. The record is noticed at once.
const LOOK: Duration = Duration::from_secs(1);
/// After this long a command whose outcome is open is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long a proposal may take.
const LIMIT: Duration = Duration::from_secs(5);
/// What only says that the hub is away: it cannot be read there while it holds, and is over when it can.
const OF_THE_HUB: [Condition; 4] =
    [Condition::HubUnreachable, Condition::HubThrottled, Condition::HubBadAnswer, Condition::HubUntrusted];

/// The link as faces see it.
pub struct ModuleFace {
    /// How it fares.
    pub state: watch::Receiver<ModuleState>,
    /// Where it goes.
    pub name: String,
    /// What became of the workload's messages, if there is a gate.
    pub gate: Option<gate::Counts>,
}

/// The link's inner ends, for [`NodeDoor::speak`].
pub struct ModuleEnds {
    wanted: watch::Sender<Option<Reported>>,
    state: watch::Receiver<ModuleState>,
    desired: watch::Receiver<Option<Desired>>,
    calls: mpsc::Receiver<Call>,
    allowed: Allowed,
    /// Whether what is read there may be older than what was said.
    stores: bool,
}

impl Node {
    /// Holds the module's link until this node leaves. It says nothing before [`NodeDoor::speak`].
    pub fn module(
        &self,
        module: Arc<dyn Module>,
        settings: &Settings,
        mut dice: Dice,
    ) -> (ModuleFace, ModuleEnds) {
        let (wanted, to_say) = watch::channel(None);
        let (state, shown) = watch::channel(ModuleState::default());
        let (desired, known) = watch::channel(None);
        let (calls, called) = mpsc::channel(CALLS);
        let (inputs, routed) = mpsc::channel(INPUTS);
        let roster = self.group.roster();
        let name = module.name().to_owned();
        let gate = settings.gate.clone().map(|gate| {
            let counts = gate::Counts::default();
            let this = GateLoop {
                inputs: routed,
                held: self.held.clone(),
                clock: self.clock.clone(),
                site: roster.site.id.clone(),
                gate,
                counts: counts.clone(),
            };
            self.spawn(this.run(self.loops.clone()));
            counts
        });
        // An edgeHub spreads the load itself; straight at the hub, all devices of all its sites return at once.
        let stores = module.stores_and_forwards();
        let alone = settings.sites <= 1 || stores;
        let updates = roster.site.members.len() * if settings.mirror.devices() { 2 } else { 1 };
        let spread = match alone {
            true => Duration::ZERO,
            false => window(settings.sites, updates, settings.updates_per_second),
        };
        let this = ModuleLoop {
            module,
            wanted: to_say,
            state,
            inbox: Inbox { desired, calls, inputs },
            clock: self.clock.clone(),
            dice: Box::new(move || dice.throw()),
            refresh: settings.refresh,
            spread,
        };
        self.spawn(this.run(self.loops.clone()));
        let allowed = Allowed::read(&settings.commands).unwrap_or_default();
        let face = ModuleFace { state: shown.clone(), name, gate };
        (face, ModuleEnds { wanted, state: shown, desired: known, calls: called, allowed, stores })
    }
}

impl NodeDoor {
    /// Says from now on what the module twin shall show, and executes what the cloud commands, until the node leaves.
    pub fn speak(self: &Arc<Self>, ends: ModuleEnds) {
        let ModuleEnds { wanted, state, desired, calls, allowed, stores } = ends;
        let outcomes = watch::Sender::new(Properties::new());
        let (door, told) = (self.clone(), outcomes.subscribe());
        self.node.spawn(async move { door.say(&wanted, told, stores).await });
        let door = self.clone();
        self.node.spawn(async move {
            let stop = door.node.loops.clone();
            let all = async {
                tokio::join!(
                    door.obey(&allowed, desired, &outcomes),
                    door.answer_calls(&allowed, calls, &outcomes),
                    door.raise(state),
                )
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                _ = all => {}
            }
        });
    }

    async fn say(
        &self,
        wanted: &watch::Sender<Option<Reported>>,
        mut outcomes: watch::Receiver<Properties>,
        stores: bool,
    ) {
        let stop = self.node.loops.clone();
        let (mut record, mut vouched) = (self.node.group.record(), self.node.group.vouched());
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut doubtful = stores;
        loop {
            let known = record.borrow_and_update().record.clone();
            let commands = outcomes.borrow_and_update().clone();
            let heard = vouched.borrow_and_update().map(|vouched| vouched.epoch);
            doubtful = doubtful && !self.is_newest(&known, heard);
            let fresh = Some(Reported { doubtful, ..self.reported(&known, commands) });
            wanted.send_if_modified(|old| {
                let changed = *old != fresh;
                *old = fresh;
                changed
            });
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = record.changed() => {}
                Ok(()) = outcomes.changed() => {}
                Ok(()) = vouched.changed(), if doubtful => {}
                _ = tick.tick() => {}
            }
        }
    }

    /// Whether no earlier life of this sidecar can have known a newer ownership: this one has claimed it, or an owner that a quorum
    /// has promised told of it. Before that a restarted sidecar may be behind what it said itself.
    fn is_newest(&self, record: &Record, heard: Option<Epoch>) -> bool {
        let roster = self.node.group.roster();
        record.owned_by(&roster.me, roster.incarnation).is_some()
            || heard.is_some_and(|epoch| epoch <= record.epoch)
    }

    /// What this device says of the site; the moment and the lag are the loop's to fill in.
    fn reported(&self, record: &Record, commands: Properties) -> Reported {
        let roster = self.node.group.roster();
        let newest = record.history.back();
        let published = Published {
            site: roster.site.id.clone(),
            devices: Vec::new(),
            owner: record.owner.as_ref().map(|owner| owner.device.clone()),
            epoch: record.epoch.get(),
            since_unix_ms: newest.map_or(0, |change| change.until_unix_ms.unwrap_or(change.since_unix_ms)),
            reason: newest.map(|change| change.reason.clone()).unwrap_or_default(),
        };
        let flag = Flag::wanted(&published, &roster.me);
        let witness = roster.site.member(&roster.me).is_some_and(|me| me.role == Role::Witness);
        let role = match (witness, flag.active) {
            (true, _) => "witness",
            (false, true) => "owner",
            (false, false) => "standby",
        };
        let (members, may_fail, conditions) = self.seen();
        let mut conditions: Vec<String> = conditions
            .into_iter()
            .filter(|raised| !OF_THE_HUB.contains(&raised.name))
            .map(|raised| raised.name.name().to_owned())
            .collect();
        conditions.sort();
        conditions.dedup();
        let member = |m: crate::status::report::Member| Member {
            device: m.device,
            role: m.role,
            build: m.build,
            reachable: m.reachable,
        };
        let mirrors = self.surroundings.mirror.as_ref().and_then(|_| self.node.mirrored_by());
        Reported {
            doubtful: false,
            device: roster.me.to_string(),
            role: role.to_owned(),
            build: roster.build(),
            members: members.into_iter().map(member).collect(),
            may_fail,
            paused: record.paused.as_ref().map(pause_in_words),
            drained: record.drained.keys().map(ToString::to_string).collect(),
            conditions,
            mirror: mirrors.map(|device| device.to_string()),
            hub_lag_s: 0,
            certificate_expires: None,
            commands,
            reported: String::new(),
            flag,
        }
    }

    /// Executes what the desired properties command, one after the other. What cannot be done now is tried again until it
    /// can, or has expired.
    async fn obey(
        &self,
        allowed: &Allowed,
        mut desired: watch::Receiver<Option<Desired>>,
        outcomes: &watch::Sender<Properties>,
    ) {
        let mut begun = BTreeSet::new();
        loop {
            let wanted = desired.borrow_and_update().clone();
            let (mut open, mut still) = (false, BTreeSet::new());
            if let Some(Desired { properties, commands: said, .. }) = wanted {
                for request in commands::desired(properties.get(KEY).unwrap_or(&Value::Null)) {
                    let mut known = said.clone();
                    merge(&mut known, &outcomes.borrow());
                    if is_answered(&request, &Value::Object(known)) {
                        continue;
                    }
                    let number = request.as_ref().ok().map(commands::Request::number);
                    let before = number.is_some_and(|number| begun.contains(&number));
                    let request = request.map(|request| request.tried(before));
                    let wall_ms = self.node.clock.wall_ms();
                    let outcome = execute(self, allowed, wall_ms, request).await;
                    still.extend(number.filter(|_| outcome.is_begun()));
                    match outcome.is_final() {
                        true => note(outcome.reported(wall_ms), outcomes),
                        false => open = true,
                    }
                }
            }
            begun = still;
            tokio::select! {
                Ok(()) = desired.changed() => {}
                () = tokio::time::sleep(AGAIN), if open => {}
                else => return,
            }
        }
    }

    /// Answers direct methods.
    async fn answer_calls(
        &self,
        allowed: &Allowed,
        mut calls: mpsc::Receiver<Call>,
        outcomes: &watch::Sender<Properties>,
    ) {
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                Some(()) = running.next() => {}
                call = calls.recv(), if running.len() < AT_ONCE => match call {
                    Some(call) => running.push(self.answer_call(allowed, call, outcomes)),
                    None => return,
                },
            }
        }
    }

    async fn answer_call(&self, allowed: &Allowed, call: Call, outcomes: &watch::Sender<Properties>) {
        let Call { link, id, method, payload } = call;
        let request = commands::method(&method, &payload);
        let wall_ms = self.node.clock.wall_ms();
        let outcome = execute(self, allowed, wall_ms, request).await;
        if outcome.is_final() {
            note(outcome.reported_of_method(wall_ms), outcomes);
        }
        if let Err(error) = link.answer(&id, outcome.status(), &outcome.reply()).await {
            tracing::debug!(method, %error, "the answer to a call from the cloud did not leave");
        }
    }

    /// A twin that shows an epoch which the site has not reached: the site's next one shall be above it.
    async fn raise(&self, mut state: watch::Receiver<ModuleState>) {
        let mut vouched = self.node.group.vouched();
        loop {
            let heard = vouched.borrow_and_update().map(|vouched| vouched.epoch);
            let seen = state.borrow_and_update().highest_epoch_seen;
            let record = self.node.group.record().borrow().record.clone();
            // A sidecar that has just started finds its own earlier words ahead of it, until it has caught up.
            let newest = self.is_newest(&record, heard);
            // No site can have come further than that; then the condition stays, and a person has to look.
            let believed = record.epoch.get().saturating_add(FLOOR_AHEAD);
            let above = Epoch::new(seen)
                .filter(|above| *above > record.epoch && *above > record.floor && seen <= believed)
                .filter(|_| newest);
            if let Some(above) = above {
                let seen_in = self.node.group.roster().me.to_string();
                let command = Command::RaiseFloor(RaiseFloor { above, seen_in });
                if let Err(why) = self.node.group.propose(command, LIMIT).await {
                    tracing::debug!(%why, "the site's next epoch could not be raised");
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            tokio::select! {
                Ok(()) = state.changed() => {}
                Ok(()) = vouched.changed(), if !newest => {}
                else => return,
            }
        }
    }
}

/// What became of a request, for the twin.
fn note(said: Option<Value>, outcomes: &watch::Sender<Properties>) {
    if let Some(Value::Object(said)) = said {
        outcomes.send_modify(|all| merge(all, &said));
    }
}
