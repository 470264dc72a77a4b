//! Real sidecars with both mirrors, over REST and through emulated edgeHubs, and the emulated hub over TLS, all in random trouble at once;
//! then everything heals, and all twins must say what the site says.
//!
//! Every write to a device twin is checked afterwards; the modules' own twins are looked at every few milliseconds meanwhile.
//! `QUORATE_HUB_RUNS` sets how many sites are tried, one after the other (2), and `QUORATE_HUB_SEED` the first seed. A run
//! that fails names its seed.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use quorate::{
    dice::Dice,
    hub::{
        FlagPath,
        memory::Rollback,
        store::Write,
        trouble::{Rule, Scope, Trouble},
    },
};
use rustix::process::Signal;

use super::{
    hub::{DEVICES, Hub, tell},
    site::{Plan, Site, now, until},
};
use crate::promise::p5_twin::Shown;

const ROUNDS: u32 = 5;
/// How long a trouble of the hub lasts beside what happens on site, at most.
const ROUND: Duration = Duration::from_millis(900);
/// How often the modules' twins are looked at: a twin that was overwritten tells nobody.
const LOOK: Duration = Duration::from_millis(5);

#[expect(clippy::disallowed_methods, reason = "a switch of the test run itself")]
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// One trouble of the hub, drawn.
fn trouble(dice: &mut Dice) -> Rule {
    let trouble = match dice.throw() % 6 {
        0 => Trouble::Unreachable,
        1 => Trouble::Slow { delay_ms: dice.throw() % 400 },
        2 => Trouble::Throttled { retry_after_s: (dice.throw().is_multiple_of(2)).then_some(1) },
        3 => Trouble::Failing { status: 500 + u16::try_from(dice.throw() % 5).expect("small") },
        4 => Trouble::DropAnswer,
        _ => Trouble::TokensExpired,
    };
    // The listener as a whole is there or not; everything else may hit some requests only.
    let probability =
        if trouble == Trouble::Unreachable || dice.throw().is_multiple_of(2) { 1.0 } else { 0.5 };
    let devices = if trouble != Trouble::Unreachable && dice.throw().is_multiple_of(4) {
        vec!["edge-2".to_owned()]
    } else {
        vec![]
    };
    Rule { trouble, scope: Scope { devices, ..Scope::default() }, probability, for_s: None }
}

/// What was written, in order: no epoch goes back, but by what a rollback has lost, and no two devices were ever active under one
/// epoch.
fn check(writes: &[Write], rollbacks: &[Rollback]) {
    let mut shown = Shown::default();
    let mut rollbacks = rollbacks.iter().peekable();
    for write in writes {
        while let Some(rollback) = rollbacks.next_if(|rollback| rollback.at <= write.at) {
            shown.rolled_back(rollback.to);
        }
        let Some(desired) = &write.change.desired else { continue };
        let (seen, twin) = (FlagPath::default().read(desired), write.target.to_string());
        let kept = shown.shows(write.at, &twin, &write.target.device, seen.epoch, seen.active);
        kept.unwrap_or_else(|broken| panic!("{broken}"));
    }
}

/// What the modules' own twins show, looked at again and again. A rollback passes through here.
#[derive(Default)]
struct Modules(Mutex<(Shown, Option<String>)>);

impl Modules {
    fn look(&self, hub: &Hub) {
        let mut it = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for device in DEVICES {
            let at = now();
            let Some(seen) = hub.seen(device).1 else { continue };
            let kept =
                it.0.shows(at, &format!("the module twin of {device}"), device, seen.epoch, seen.active);
            it.1 = it.1.take().or(kept.err());
        }
    }

    fn roll_back(&self, hub: &Hub, by: Duration) {
        let mut it = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hub.emulator.rollback(by);
        // Whatever was seen was there before.
        it.0.rolled_back(hub.emulator.rollbacks().last().expect("just now").to);
    }
}

/// What one run came to.
struct Outcome {
    changes: u64,
    rollbacks: usize,
    /// From the end of the last trouble until all twins were right.
    flags: Duration,
}

fn run(seed: u64) -> Outcome {
    let hub = Hub::with_edges(seed);
    let (modules, over) = (Modules::default(), AtomicBool::new(false));
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                modules.look(&hub);
                std::thread::sleep(LOOK);
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| trial(seed, &hub, &modules)));
        over.store(true, Ordering::SeqCst);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let broken = modules.0.into_inner().unwrap_or_else(PoisonError::into_inner).1;
    assert_eq!(broken, None);
    outcome
}

fn trial(seed: u64, hub: &Hub, modules: &Modules) -> Outcome {
    let mut dice = Dice::new(seed);
    let mut site = Site::with(Plan { more: hub.section(), ..Plan::default() });
    tell(&hub.edges, &mut site);
    site.start_all();
    let (mut owner, mut epoch) = site.owner(0);
    let first = epoch;
    let mut asked = epoch;
    for _ in 0..ROUNDS {
        let rule = trouble(&mut dice);
        let id = hub.emulator.add_trouble(rule).expect("is a trouble");
        // The internet of one device, as far as its edgeHub needs it.
        let cut = usize::try_from(dice.throw() % 6).expect("small");
        hub.edges.iter().enumerate().for_each(|(n, edge)| edge.upstream(n != cut));
        let over = now() + ROUND.mul_f64((dice.throw() % 100) as f64 / 100.0);
        match dice.throw() % 4 {
            // The hub alone is in trouble, and nothing on site moves.
            0 => {
                until("the trouble to have lasted", || (now() >= over).then_some(()));
                assert_eq!(site.owner(0), (owner, epoch), "the hub moved the ownership");
            }
            1 => {
                site.signal(owner, Signal::KILL);
                site.left(owner);
                let others: Vec<usize> = (0..3).filter(|n| *n != owner).collect();
                let killed = owner;
                (owner, epoch) = site.owner_among(&others, epoch);
                site.start(killed);
                site.up(killed);
                asked += 1;
            }
            2 => {
                let to = site.devices[(owner + 1) % 3].id.clone();
                // A device that has just started may not vote yet, and is refused.
                until("a handover", || {
                    (site.ask(owner, &["transfer", "--to", &to]).status.code() == Some(0)).then_some(())
                });
                (owner, epoch) = site.owner(epoch);
                asked += 1;
            }
            // The hub's region fails over and has lost the last moments.
            _ => {
                modules.roll_back(hub, Duration::from_millis(dice.throw() % 3000));
                until("the trouble to have lasted", || (now() >= over).then_some(()));
            }
        }
        assert!(hub.emulator.end_trouble(id));
    }
    hub.edges.iter().for_each(|edge| edge.upstream(true));
    let healed = now();
    (owner, epoch) = site.owner(0);
    let name = site.devices[owner].id.clone();
    until("the twins to say what the site says", || hub.shows(&name, epoch).then_some(()));
    let flags = now().since(healed);
    assert_eq!(site.owner(0), (owner, epoch), "the hub's return moved the ownership");
    let history = || site.report(owner).map(|report| format!("{:#?}", report.history));
    assert_eq!(
        epoch,
        asked,
        "every change of ownership was somebody's on site: {}",
        history().unwrap_or_default()
    );
    check(&hub.emulator.log(), &hub.emulator.rollbacks());
    site.runs_without_overlap();
    for n in 0..3 {
        assert!(!site.log(n).contains("panicked"));
    }
    Outcome { changes: epoch - first, rollbacks: hub.emulator.rollbacks().len(), flags }
}

#[test]
fn whatever_hub_and_site_suffer_at_once_they_agree_afterwards() {
    let first = number("QUORATE_HUB_SEED", 1);
    for seed in first..first + number("QUORATE_HUB_RUNS", 2) {
        println!("seed {seed}");
        let Outcome { changes, rollbacks, flags } = run(seed);
        println!(
            "seed {seed}: {changes} changes of owner, {rollbacks} rollbacks, twins right after {flags:?}"
        );
    }
}
