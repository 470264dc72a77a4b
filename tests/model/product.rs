//! The product's own lease, record and decision, asked through their public doors; the guard is in `guard.rs`.
//!
//! Each is a plain value that is handed the time. A state of the model holds what can be *seen* of it; here it is put back
//! together with its own methods, told what happened, and read again with its own methods. So the rules are the
//! product's, and a rule broken in `src/` is a rule broken here. What was asked once is remembered.

use std::{
    collections::BTreeSet,
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use quorate::{
    clock::Moment,
    epoch::Epoch,
    id::{DeviceId, Incarnation, NodeId, SiteId},
    ownership::{
        command::{Claim, Command, Order, Outcome, StopReceipt},
        decide::{Action, decide},
        lease::Lease,
        record::{Cause, Change, Ownership, Record, Released},
        view::{Running, Standing, Unfit, View},
    },
    site::{Member, Role, Site},
    timing::{Settings, Timing},
};

/// How the model's clock steps: with the timing below, a lease lasts less than two steps of 50 ms, its grace ends before the
/// second step, and the refusal after it. `QUORATE_MODEL_FINE` halves the step.
static TICK: LazyLock<Duration> = LazyLock::new(|| {
    Duration::from_millis(if std::env::var_os("QUORATE_MODEL_FINE").is_some() { 25 } else { 50 })
});
/// The refusal window in ticks.
pub static REFUSAL: LazyLock<u8> = LazyLock::new(|| whole(TIMING.refusal()));
/// Questions this many ticks old are worth no lease any more.
pub static STALE: LazyLock<u8> = LazyLock::new(|| whole(TIMING.hold()) + 1);
/// Now, far from the ends of the clock.
pub const NOW: Moment = Moment::from_nanos(1_000_000_000_000);

static TIMING: LazyLock<Timing> = LazyLock::new(|| {
    Timing::new(&Settings {
        heartbeat: Duration::from_millis(10),
        hold: Duration::from_millis(60),
        stop_grace: Duration::from_millis(20),
        drift_ppm: 500,
        refusal: Some(Duration::from_millis(100)),
        stretch_max: 1,
    })
    .expect("a legal timing")
});

fn whole(duration: Duration) -> u8 {
    u8::try_from(duration.as_nanos() / TICK.as_nanos()).expect("few ticks")
}

/// An epoch by its number.
pub fn epoch(number: u8) -> Epoch {
    Epoch::new(u64::from(number)).expect("small")
}

/// So many ticks.
pub fn ticks(number: u8) -> Duration {
    *TICK * u32::from(number)
}

/// Answers by question number; 0 is not asked yet.
pub struct Memo(LazyLock<Vec<AtomicU16>>);

impl Memo {
    /// Nothing was asked.
    pub const fn new() -> Memo {
        Memo(LazyLock::new(|| (0..1 << 17).map(|_| AtomicU16::new(0)).collect()))
    }

    /// The answer, asked for once.
    pub fn get(&self, question: usize, ask: impl FnOnce() -> u16) -> u16 {
        let slot = &self.0[question];
        match slot.load(Relaxed) {
            0 => {
                let answer = ask();
                slot.store(answer + 1, Relaxed);
                answer
            }
            known => known - 1,
        }
    }
}

fn members(mask: u8) -> BTreeSet<NodeId> {
    (0..3).filter(|n| mask & 1 << n != 0).map(NodeId).collect()
}

fn lease(ages: [u8; 3]) -> Lease {
    let mut lease = Lease::new(epoch(1));
    for (node, age) in ages.iter().enumerate().filter(|(_, age)| **age > 0) {
        lease.promised(NodeId(node as u64), NOW.before(ticks(age - 1)) + TIMING.hold());
    }
    lease
}

fn question(ages: [u8; 3]) -> usize {
    usize::from(ages[0]) | usize::from(ages[1]) << 3 | usize::from(ages[2]) << 6
}

/// The lease after `member` promised in answer to a question of this age. Ages count from 1; 0 is none, or worthless.
pub fn promised(ages: [u8; 3], member: usize, age: u8) -> [u8; 3] {
    static MEMO: Memo = Memo::new();
    let answer = MEMO.get(question(ages) << 5 | member << 3 | usize::from(age), || {
        let mut lease = lease(ages);
        lease.promised(NodeId(member as u64), NOW.before(ticks(age)) + TIMING.hold());
        (0..3).fold(0, |bits, node| {
            let alone = lease.act_until(&[members(1 << node)]);
            let age = (0..*STALE).find(|age| alone == Some(NOW.before(ticks(*age)) + TIMING.hold()));
            bits | u16::from(age.map_or(0, |age| age + 1)) << (3 * node)
        })
    });
    std::array::from_fn(|n| u8::try_from(answer >> (3 * n) & 7).expect("few bits"))
}

/// For how many ticks, this one included, the workload may run by this lease; 0 if the lease is not held. `quorum`: of
/// the three, or of the owner alone, were that enough.
pub fn runs_for(ages: [u8; 3], owner: usize, quorum: bool) -> u8 {
    static MEMO: Memo = Memo::new();
    let answer = MEMO.get(question(ages) << 3 | owner << 1 | usize::from(quorum), || {
        let voters = if quorum { members(7) } else { members(1 << owner) };
        match lease(ages).act_until(&[voters]) {
            Some(until) if until > NOW => {
                let end = until + TIMING.stop_grace();
                u16::from(whole(end.since(NOW)) + 1)
            }
            _ => 0,
        }
    });
    u8::try_from(answer).expect("small")
}

/// A record as the model holds it: who owns, if anybody, and in which life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owned {
    /// The newest epoch.
    pub epoch: u8,
    /// The owner and whether its sidecar still lives the life in which it claimed; `None` before the first claim and after
    /// a receipt.
    pub owner: Option<(usize, bool)>,
    /// Whether the site is paused. Then whoever asks may be the one that owned last, if nobody owns.
    pub paused: bool,
}

fn device(node: usize) -> DeviceId {
    DeviceId::new(format!("edge-{node}")).expect("a name")
}

fn life(present: bool) -> Incarnation {
    Incarnation(u64::from(present))
}

static EMPTY: LazyLock<Record> = LazyLock::new(|| {
    let member = |n| Member { device: device(n), address: String::new(), role: Role::Voter };
    let members = (0..3).map(member).collect();
    Record::new(&Site { id: SiteId::new("plant").expect("a name"), members, timing: *TIMING })
});

impl Owned {
    /// The record as `asks` sees it.
    fn record(self, asks: usize) -> Record {
        let mut record = EMPTY.clone();
        if self.paused {
            record.apply(&Command::Pause(Order {
                id: 1,
                actor: String::new(),
                reason: String::new(),
                at_unix_ms: 0,
                base: None,
                expires_unix_ms: 0,
                until_unix_ms: None,
            }));
            record.history.push_back(Change {
                epoch: epoch(self.epoch),
                device: device(self.owner.map_or(asks, |(node, _)| node)),
                cause: Cause::FirstStart,
                actor: String::new(),
                reason: String::new(),
                since_unix_ms: 0,
                until_unix_ms: None,
                build: String::new(),
            });
        }
        record.epoch = epoch(self.epoch);
        record.owner = self.owner.map(|(node, present)| Ownership {
            device: device(node),
            incarnation: life(present),
            epoch: epoch(self.epoch),
            cause: Cause::FirstStart,
            since_unix_ms: 0,
            seal: None,
        });
        if self.owner.is_none() && self.epoch > 0 {
            record.released =
                Some(Released { epoch: epoch(self.epoch), successor: None, reason: String::new() });
        }
        record
    }

    fn read(record: &Record) -> Owned {
        let node = |o: &Ownership| (0..3).find(|n| device(*n) == o.device).expect("one of three");
        Owned {
            epoch: u8::try_from(record.epoch.get()).expect("small"),
            owner: record.owner.as_ref().map(|o| (node(o), o.incarnation == life(true))),
            paused: record.paused.is_some(),
        }
    }

    fn pack(self) -> usize {
        let owner = self.owner.map_or(7, |(node, present)| node << 1 | usize::from(present));
        usize::from(self.epoch) << 4 | usize::from(self.paused) << 3 | owner
    }

    fn apply(self, asks: usize, command: &Command) -> u16 {
        let mut record = self.record(asks);
        match record.apply(command) {
            Outcome::Done { .. } => u16::try_from(Owned::read(&record).pack()).expect("few bits"),
            _ => u16::MAX - 1,
        }
    }

    fn unpack(bits: u16) -> Option<Owned> {
        let owner = usize::from(bits & 7);
        let owner = (owner < 7).then_some((owner >> 1, owner & 1 == 1));
        (bits < u16::MAX - 1).then(|| {
            let (epoch, paused) = (u8::try_from(bits >> 4).expect("few bits"), bits >> 3 & 1 == 1);
            Owned { epoch, owner, paused }
        })
    }

    /// A claim for the epoch after `base`. `None` if it was refused.
    pub fn claim(self, node: usize, present: bool, base: u8) -> Option<Owned> {
        static MEMO: Memo = Memo::new();
        let question = self.pack() << 5 | node << 3 | usize::from(present) << 2 | usize::from(base);
        Owned::unpack(MEMO.get(question, || {
            let (device, incarnation) = (device(node), life(present));
            let base = epoch(base);
            let claim = Claim { device, incarnation, base, at_unix_ms: 0, seal: None, proof: None };
            self.apply(node, &Command::Claim(claim))
        }))
    }

    /// The owner's receipt. `None` if it was refused.
    pub fn release(self, node: usize, present: bool, number: u8) -> Option<Owned> {
        static MEMO: Memo = Memo::new();
        let question = self.pack() << 5 | node << 3 | usize::from(present) << 2 | usize::from(number);
        Owned::unpack(MEMO.get(question, || {
            let (device, incarnation, reason) = (device(node), life(present), String::new());
            let receipt = StopReceipt {
                device,
                incarnation,
                epoch: epoch(number),
                successor: None,
                reason,
                at_unix_ms: 0,
            };
            self.apply(node, &Command::StopReceipt(receipt))
        }))
    }
}

/// What a device does by its own decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// Waits.
    Waits,
    /// Claims.
    Claims,
    /// Starts the workload, or lets it go on.
    Runs,
    /// Stops the workload.
    Stops,
    /// Proposes its receipt.
    Releases,
}

/// The product's decision. `running` is the epoch of the workload that may run here, 0 for none; `leaves` whether the
/// device gives up of its own accord.
pub fn decides(node: usize, leads: bool, owned: Owned, held: bool, running: u8, leaves: bool) -> Does {
    static MEMO: Memo = Memo::new();
    let question = owned.pack() << 7
        | node << 5
        | usize::from(leads) << 4
        | usize::from(held) << 3
        | usize::from(running) << 1
        | usize::from(leaves);
    let answer = MEMO.get(question, || {
        let record = owned.record(node);
        let decision = decide(&View {
            burned: None,
            now: NOW,
            me: &device(node),
            incarnation: life(true),
            standing: if leads { Standing::Leader } else { Standing::Follower },
            record: &record,
            lease: held.then(|| (record.epoch, NOW + TIMING.hold())),
            running: if running == 0 { Running::Stopped } else { Running::Under(epoch(running)) },
            unfit: leaves.then_some(&Unfit::Leaving),
            successor: None,
            successor_until: None,
        });
        match decision.action {
            Action::Wait => 0,
            Action::Claim { .. } => 1,
            Action::Start { .. } | Action::Extend { .. } => 2,
            Action::Stop => 3,
            Action::Release { .. } => 4,
        }
    });
    [Does::Waits, Does::Claims, Does::Runs, Does::Stops, Does::Releases][usize::from(answer)]
}
