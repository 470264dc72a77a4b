//! Real sidecars and the emulated hub over TLS, both in random trouble at once; then everything heals, and the twins must say what the
//! site says.
//!
//! `QUORATE_HUB_RUNS` sets how many sites are tried, one after the other (2), and `QUORATE_HUB_SEED` the first seed. A run
//! that fails names its seed.

use std::{collections::BTreeMap, time::Duration};

use quorate::{
    dice::Dice,
    hub::{
        FlagPath,
        store::Write,
        trouble::{Rule, Scope, Trouble},
    },
};
use rustix::process::Signal;

use super::{
    hub::Hub,
    site::{Plan, Site, now, until},
};

const ROUNDS: u32 = 5;
/// How long a trouble of the hub lasts beside what happens on site, at most.
const ROUND: Duration = Duration::from_millis(900);

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

/// What was written, in order: no epoch goes back, rollbacks aside, and no two devices were ever active under one epoch.
fn check(writes: &[Write], rollbacks: &[quorate::clock::Moment]) {
    let mut shown: BTreeMap<&str, (u64, bool)> = BTreeMap::new();
    let mut rollbacks = rollbacks.iter().peekable();
    for write in writes {
        if rollbacks.next_if(|at| **at <= write.at).is_some() {
            shown.clear();
        }
        let Some(desired) = &write.change.desired else { continue };
        let seen = FlagPath::default().read(desired);
        let before = shown.insert(&write.target.device, (seen.epoch, seen.active));
        let epoch = before.map_or(0, |(epoch, _)| epoch);
        assert!(seen.epoch >= epoch, "the twin of {} went back from {epoch} to {}", write.target, seen.epoch);
        let active = shown.iter().filter(|(_, shown)| **shown == (seen.epoch, true)).count();
        assert!(active <= 1, "two devices are active under epoch {}: {shown:?}", seen.epoch);
    }
}

fn run(seed: u64) {
    let mut dice = Dice::new(seed);
    let hub = Hub::start(seed);
    let (mut site, mut owner, mut epoch) = Site::running(Plan { more: hub.section(), ..Plan::default() });
    let mut asked = epoch;
    let mut rollbacks = Vec::new();
    for _ in 0..ROUNDS {
        let rule = trouble(&mut dice);
        let id = hub.emulator.add_trouble(rule).expect("is a trouble");
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
                hub.emulator.rollback(Duration::from_millis(dice.throw() % 3000));
                rollbacks.push(now());
                until("the trouble to have lasted", || (now() >= over).then_some(()));
            }
        }
        assert!(hub.emulator.end_trouble(id));
    }
    (owner, epoch) = site.owner(0);
    let name = site.devices[owner].id.clone();
    until("the twins to say what the site says", || hub.shows(&name, epoch).then_some(()));
    assert_eq!(epoch, asked, "every change of ownership was somebody's on site");
    check(&hub.emulator.log(), &rollbacks);
    site.runs_without_overlap();
    for n in 0..3 {
        assert!(!site.log(n).contains("panicked"));
    }
}

#[test]
fn whatever_hub_and_site_suffer_at_once_they_agree_afterwards() {
    let first = number("QUORATE_HUB_SEED", 1);
    for seed in first..first + number("QUORATE_HUB_RUNS", 2) {
        println!("seed {seed}");
        run(seed);
    }
}
