//! An exhaustive model of what keeps two workloads apart: vote guard, lease, claim, restart, receipts and pause.
//!
//! Every state that three devices can reach is visited, breadth first, and in each of them at most one workload runs and
//! epochs only grow (P2, P1). Then each rule is taken out in turn, and the way to an overlap must be found: so no rule is
//! there for nothing, and the model is able to see what it looks for.
//!
//! The rules are not written down again here. A state holds what can be seen of the product's own values; they are put
//! together, told what happened and read again (`guard.rs`, `product.rs`):
//!
//! | in the model | in the product |
//! |---|---|
//! | may it vote, does it promise | `raft::vote_guard::Guard`, one per device |
//! | until when the owner may act | `ownership::lease::Lease` with a legal `timing::Timing` |
//! | who owns, who may claim (while the site is paused, too), what a receipt ends | `ownership::record::Record::apply` |
//! | start, stop, claim, release | `ownership::decide::decide` |
//! | asking, answering, restarting, lifting (`steps.rs`, `effects.rs`) | written down again: `reconcile/lease.rs`, `raft/group.rs`, `raft/machine.rs` |
//! | votes, logs, commits | written down again, as Raft promises them: a commit reaches the leader and one other at one moment, and nobody votes for a log shorter than its own |
//!
//! **More than the product does**: a renewal takes any time, overtakes another, or is lost; a vote's answer takes any time; a
//! candidate takes any ballot above its own; whoever may campaign does so whenever it likes, without pre-vote, rank or
//! named successor; a workload runs from the moment it may to the very end of lease and grace, unless its end was
//! confirmed; in a paused site without owner whoever asks may be the one that owned last; a fencer may give its receipt while its sidecar lives; a proposed receipt, and with `late_claims` a claim, may
//! be committed at any later time by any leader; the guard is never told that a workload runs.
//!
//! **Less**: three voters, no membership changes; a follower that has an entry has applied it (what a new leader must
//! wait for is tested elsewhere); a promise before the first claim (epoch 0) is not asked for; a vote request is lost once its candidate has moved on; the
//! disk keeps what was voted.
//!
//! **Time** is one clock in ticks. Each bound of the product lies between the moment of a question and a later moment: the
//! workload ends within `hold + stop_grace` of the owner's clock, and the vote comes after `refusal` of the member's. With
//! rates apart by at most the drift, the first is still the shorter (`timing.rs`): that is all the model uses. Both bounds
//! are whole ticks and both ends are included, for which whole ticks show every order of events that real time does.
//! A tick does not bound anything: time, elections, terms, restarts, losses and the length of a run are unlimited.
//!
//! **Bounds**, named in each scope: epochs (3 at most), renewals under way at once (1 or 2), and which kinds of trouble
//! come together. Within them every state is visited: `complete` says that nothing was left. States that differ only in
//! devices' names, in the number of a term or in the date are one.
//!
//! stateright was looked at and not taken: 25 more packages, among them a web server and a second `rand`, for a search of a
//! hundred lines, and it keeps 64-bit fingerprints where this keeps the states.
#![expect(clippy::expect_used, clippy::disallowed_methods, reason = "tests may")]
#![expect(unreachable_pub, reason = "the modules of one binary")]

/// What the steps do.
mod effects;
/// Breadth first.
mod explore;
/// The product's guard.
mod guard;
/// The product's lease, record and decision.
mod product;
/// The rules, and the scopes.
mod rules;
/// One moment.
mod state;
/// What can happen next.
mod steps;

use explore::explore;
use rules::{RULES, Rule, Scope};

/// Beyond this the search gives up, which fails the test: 30 million states take 1.5 GB.
const LIMIT: usize = 30_000_000;

/// The scopes of each depth: epochs, renewals under way, and what else may happen.
const SCOPES: [&[(u8, usize, &str)]; 3] = [
    &[(3, 1, ""), (3, 1, "late_answers"), (3, 1, "late_claims"), (2, 1, "restarts"), (2, 1, "receipts")],
    &[
        (3, 2, "late_answers"),
        (3, 1, "restarts"),
        (3, 1, "receipts"),
        (3, 1, "slow_votes"),
        (3, 1, "pause late_claims"),
        (2, 1, "fencers"),
    ],
    &[
        (3, 1, "fencers"),
        (2, 1, "restarts receipts"),
        (2, 1, "restarts fencers"),
        (2, 1, "restarts slow_votes"),
        (2, 1, "restarts late_claims"),
    ],
];

/// Where each rule is missed: the smallest scope that shows it.
fn shown_in(rule: Rule) -> Scope {
    let (epochs, slots, words) = match rule {
        Rule::PromiseWindow
        | Rule::WindowOutlastsLease
        | Rule::HigherVote
        | Rule::LeaseQuorum
        | Rule::VoteQuorum => (2, 1, ""),
        Rule::BootRefusal => (2, 1, "restarts"),
        Rule::NewIncarnation => (2, 1, "restarts receipts"),
        Rule::EpochInPromise | Rule::LeasePerEpoch => (3, 1, "receipts"),
        Rule::LateQuestion => (3, 2, "receipts"),
        Rule::PromiseWhileVoting => (2, 1, "slow_votes"),
        Rule::FromBeforeAsking => (2, 1, "late_answers"),
        Rule::StopBeforeReceipt | Rule::BurnedByProposal => (2, 1, "receipts"),
        Rule::BurnedByFencer => (2, 1, "fencers"),
        Rule::PauseKeepsTheLease => (2, 1, "pause"),
    };
    Scope { without: Some(rule), ..Scope::new(epochs, slots, words) }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// With all rules in force nothing bad can be reached.
#[test]
fn no_reachable_state_is_bad() {
    let depth = variable("QUORATE_MODEL_DEPTH").map_or(0, |v| v.parse().expect("0, 1 or 2"));
    let mut scopes: Vec<_> = SCOPES[..=depth].iter().flat_map(|s| s.iter().copied()).collect();
    let own = variable("QUORATE_MODEL_SCOPE");
    if let Some(own) = &own {
        let mut words = own.splitn(3, ' ');
        let mut number =
            || words.next().and_then(|w| w.parse().ok()).expect("epochs, renewals under way, words");
        scopes = vec![(number(), usize::from(number()), words.next().unwrap_or_default())];
    }
    let mut seen = 0;
    for (epochs, slots, words) in scopes {
        let found = explore(&Scope::new(epochs, slots, words), LIMIT);
        println!(
            "{epochs} epochs, {slots} renewals under way, {words:?}: {} states, {} steps deep, {:.1?}",
            found.states, found.depth, found.took
        );
        if let Some((way, wrong)) = found.bad {
            panic!("{wrong}\n{}", tell(&way));
        }
        assert!(found.complete, "not all states were visited");
        seen |= found.sights;
        let owners = (1..=epochs).all(|epoch| found.sights & 1 << epoch != 0);
        assert!(owners, "no workload ran under some epoch: the model proves nothing");
    }
    assert!(own.is_some() || seen & 1 << 4 != 0, "nobody ran after a receipt: the model proves nothing");
}

/// Each rule is missed when it is taken out, and the table in tests/README.md says after how many steps.
#[test]
fn without_any_rule_two_workloads_run() {
    let readme = include_str!("../README.md");
    let traced = variable("QUORATE_MODEL_TRACE");
    for rule in RULES {
        let found = explore(&shown_in(rule), LIMIT);
        let Some((way, wrong)) = found.bad else {
            panic!("without {rule:?} nothing bad was found in {} states", found.states);
        };
        println!(
            "without {rule:?}: {wrong} after {} steps, {} states, {:.1?}",
            way.len(),
            found.states,
            found.took
        );
        if traced.as_deref().is_some_and(|name| format!("{rule:?}") == name) {
            println!("{}", tell(&way));
        }
        let row = format!("| `{rule:?}` | {} |", way.len());
        assert!(readme.contains(&row), "the table in tests/README.md has no row with: {row}");
    }
}

fn tell(way: &[(steps::Step, state::State)]) -> String {
    way.iter().map(|(step, state)| format!("{step:?}\n{state}")).collect()
}
