//! What a story does to a site: power, processes, links, disks, wishes, clocks.

use std::{
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use quorate::{
    hub::{
        Change,
        link::{Event, Module as _},
    },
    id::StoreId,
    ownership::command::{self, Command, Drain, SetPreferred},
    raft::log::{Amnesia, Contents},
    reconcile::commands::Wish,
};
use serde_json::{Value, json};

use super::{
    Stage,
    device::{Order, first},
    disk::Ailment,
    net::Link,
    world::Freeze,
};

impl Stage {
    /// The power of a device goes: the sidecar and the workload end at once.
    pub fn crash(&mut self, n: usize) {
        self.disturbed();
        self.net.power(n, false);
        self.sim.kill(n);
        self.devices[n].fencer.power_off();
        if self.told.as_mut().is_some_and(|told| told[n].take().is_some()) {
            self.ledger.end(&self.devices[n].id);
        }
        self.devices[n].gone();
        self.rebooted[n] = true;
    }

    /// Whether the plant can be seen from a device.
    pub fn plant(&self, n: usize, seen: bool) {
        self.devices[n].sees.plant.store(seen, Ordering::Relaxed);
    }

    /// Whether the workload would work on a device.
    pub fn works(&self, n: usize, works: bool) {
        self.devices[n].sees.workload.store(works, Ordering::Relaxed);
    }

    /// Why the workload cannot work on a device, as its sidecar has found out; `None`: it can.
    pub fn ails(&self, n: usize, why: Option<&str>) {
        self.devices[n].tell(Order::Ail(why.map(str::to_owned)));
    }

    /// Another build is installed; the sidecar sees it at once if it is up.
    pub fn install(&mut self, n: usize, build: &str) {
        *self.devices[n].build.lock().unwrap_or_else(PoisonError::into_inner) = Some(build.into());
        self.devices[n].tell(Order::Build(build.into()));
    }

    /// The sidecar alone is killed: its fencer stops the workload, within the grace. A machine that stood still goes on.
    pub fn kill_sidecar(&mut self, n: usize) {
        self.disturbed();
        self.devices[n].fencer.freeze(false);
        self.exited(n);
    }

    /// The process is gone, whatever the reason, and the machine is not.
    pub(super) fn exited(&mut self, n: usize) {
        self.net.exit(n);
        self.sim.kill(n);
        self.devices[n].gone();
        if !self.rebooted[n] {
            self.devices[n].fencer.orphan();
        }
    }

    /// The device starts again, with the disk it had. After a loss of power its boot clock begins anew.
    pub fn start(&mut self, n: usize) {
        self.disturbed();
        if std::mem::take(&mut self.rebooted[n]) {
            let offset = self.dice.throw() % 1_000_000_000_000;
            self.devices[n].clock.offset_ns.store(offset, Ordering::Relaxed);
        }
        self.leaving[n] = false;
        self.devices[n].gone();
        self.net.power(n, true);
        self.sim.boot(n);
    }

    /// The data folder of a device that is down is emptied. From then on nothing is owed for its sake.
    pub fn empty(&mut self, n: usize) {
        self.disturbed();
        self.emptied[n] = true;
        let contents = Contents { entries: [first(&self.site)].into(), ..Contents::default() };
        let number = self.devices[n].store().number.wrapping_add(1000);
        self.devices[n].make_store(contents, StoreId { number, later: false });
    }

    /// A store that the real disk makes in place of a damaged one. From then on nothing is owed for its sake.
    pub fn lose(&mut self, n: usize, first: (u64, bytes::Bytes), amnesia: Amnesia) {
        self.disturbed();
        self.emptied[n] = true;
        self.devices[n].disk.lose(first, amnesia);
    }

    /// The device starts again, unless it is up.
    pub fn start_if_down(&mut self, n: usize) {
        if !self.sim.is_up(n) {
            self.start(n);
        }
    }

    /// The device starts again, unless it is up and means to stay.
    pub fn start_if_down_or_leaving(&mut self, n: usize) {
        if self.leaving[n] && self.sim.is_up(n) {
            self.kill_sidecar(n);
        }
        self.start_if_down(n);
    }

    /// The sidecar alone, or the whole machine, stands still until it is thawed.
    pub fn freeze(&mut self, n: usize, what: Freeze) {
        self.disturbed();
        self.sim.freeze(n, what);
        self.devices[n].fencer.freeze(what == Freeze::Machine);
    }

    pub fn thaw(&mut self, n: usize) {
        self.disturbed();
        self.sim.thaw(n);
        self.devices[n].fencer.freeze(false);
    }

    /// Changes one direction of a link.
    pub fn link(&mut self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        self.disturbed();
        self.net.change(from, to, change);
    }

    /// Cuts both directions between two devices.
    pub fn cut(&mut self, a: usize, b: usize) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Cuts one direction.
    pub fn cut_one_way(&mut self, from: usize, to: usize) {
        self.link(from, to, |link| link.cut = true);
    }

    /// Mends both directions.
    pub fn mend(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let usual = self.usual;
            self.link(from, to, |link| *link = Link { forgets: link.forgets, ..usual });
        }
    }

    /// Cuts a device off from all others.
    pub fn isolate(&mut self, n: usize) {
        for other in (0..self.devices.len()).filter(|o| *o != n) {
            self.cut(n, other);
        }
    }

    /// Makes messages between a device and all others slow.
    pub fn slow_links(&mut self, n: usize, latency: Duration) {
        for other in (0..self.devices.len()).filter(|o| *o != n) {
            for (from, to) in [(n, other), (other, n)] {
                self.link(from, to, |link| link.latency = (latency, latency));
            }
        }
    }

    /// Mends all links.
    pub fn heal(&mut self) {
        for a in 0..self.devices.len() {
            for b in 0..a {
                self.mend(a, b);
            }
        }
    }

    /// Asks for a planned handover, at a device that is not the owner.
    pub fn transfer(&mut self, to: usize) {
        self.disturbed();
        let owner = self.running().unwrap_or(to);
        let at = (0..self.devices.len()).find(|n| *n != owner).unwrap_or(to);
        self.devices[at].tell(Order::Transfer(self.devices[to].id.clone()));
    }

    /// A person gives an order at a device.
    pub fn order(&mut self, at: usize, command: impl FnOnce(command::Order) -> Command) {
        self.disturbed();
        self.ordered = true;
        let id = self.dice.throw();
        let order = command::Order {
            id,
            actor: "anna".into(),
            reason: "the test wants it".into(),
            at_unix_ms: 0,
            base: None,
            expires_unix_ms: 0,
            until_unix_ms: None,
        };
        self.devices[at].tell(Order::Propose(command(order)));
    }

    /// A person wishes something, by the corridor of all faces.
    pub fn wish(&mut self, at: usize, wish: Wish) {
        self.disturbed();
        self.ordered = true;
        self.devices[at].tell(Order::Wish(wish));
    }

    /// The cloud calls a method of a device's module; nobody hears it while that is not connected.
    pub fn cloud_calls(&mut self, at: usize, call: Event) {
        self.disturbed();
        self.ordered = true;
        let _ = self.hub.modules[at].line.push(call);
    }

    /// The cloud desires something of a device's module.
    pub fn cloud_desires(&mut self, at: usize, section: &Value) {
        self.disturbed();
        self.ordered = true;
        let change = json!({"properties": {"desired": {"quorate": section}}});
        let change = Change::from_json(&change).expect("a change");
        let _ = self.hub.memory.meddle_with_module(self.hub.modules[at].target(), &change);
    }

    pub fn drain(&mut self, at: usize, n: usize) {
        let device = self.devices[n].id.clone();
        self.order(at, |order| Command::Drain(Drain { order, device }));
    }

    pub fn undrain(&mut self, at: usize, n: usize) {
        let device = self.devices[n].id.clone();
        self.order(at, |order| Command::Undrain(Drain { order, device }));
    }

    pub fn prefer(&mut self, at: usize, n: usize) {
        let device = Some(self.devices[n].id.clone());
        self.order(at, |order| Command::SetPreferred(SetPreferred { order, device }));
    }

    /// SIGTERM to a sidecar.
    pub fn leave(&mut self, n: usize) {
        self.disturbed();
        self.leaving[n] = true;
        self.devices[n].tell(Order::Leave);
    }

    /// Every write of the disk takes so long from now on, or about so long.
    pub fn slow_disk(&mut self, n: usize, delay: Duration, tail: bool) {
        self.disturbed();
        self.slowest = self.slowest.max(delay);
        match tail {
            true => self.devices[n].disk.tail(delay),
            false => self.devices[n].disk.delay(delay),
        }
    }

    pub fn ail(&mut self, n: usize, ailment: Ailment) {
        self.disturbed();
        self.devices[n].disk.ail(ailment);
    }

    /// Steps a device's wall clock.
    pub fn set_wall_clock(&mut self, n: usize, unix_ms: u64) {
        self.devices[n].clock.wall_ms.store(unix_ms, Ordering::Relaxed);
    }
}
