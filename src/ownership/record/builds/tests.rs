use proptest::prelude::*;

use super::*;
use crate::{
    epoch::Epoch,
    id::{Incarnation, SiteId},
    ownership::command::{Claim, Command, Outcome, StopReceipt, Transfer},
    site::{Member, Site},
    timing::{Settings, Timing},
};

fn device(n: usize) -> DeviceId {
    DeviceId::new(format!("edge-{n}")).expect("a name")
}

/// A site of so many voters, the first of which owns, and of a witness.
fn record(voters: usize) -> Record {
    let member = |n: usize| Member {
        device: device(n),
        address: format!("edge-{n}:7600"),
        role: if n < voters { Role::Voter } else { Role::Witness },
    };
    let mut record = Record::new(&Site {
        id: SiteId::new("plant-7").expect("a name"),
        members: (0..=voters).map(member).collect(),
        timing: Timing::new(&Settings::default()).expect("defaults hold"),
    });
    assert!(matches!(record.apply(&claim(&record, 0, 1)), Outcome::Done { .. }));
    record
}

fn claim(record: &Record, n: usize, incarnation: u64) -> Command {
    Command::Claim(Claim {
        device: device(n),
        incarnation: Incarnation(incarnation),
        base: record.epoch,
        at_unix_ms: 5,
        seal: None,
        proof: None,
    })
}

fn declare(n: usize, build: &str, blocks: bool) -> Command {
    let declared = Declared { build: build.into(), blocks };
    Command::DeclareBuild(DeclareBuild { device: device(n), declared })
}

/// All voters say what they run, and that they do not own while that differs.
fn told(builds: &[&str]) -> Record {
    let mut record = record(builds.len());
    for (n, build) in builds.iter().enumerate() {
        assert!(matches!(record.apply(&declare(n, build, true)), Outcome::Done { .. }));
    }
    record
}

fn transfer(record: &Record, to: usize) -> Command {
    Command::Transfer(Transfer {
        id: 7,
        to: device(to),
        base: record.epoch,
        reason: "update".into(),
        actor: "anna".into(),
        at_unix_ms: 7,
        expires_unix_ms: 0,
    })
}

fn blocked(record: &Record) -> Vec<usize> {
    (0..record.roles.len()).filter(|n| record.is_blocked(&device(*n))).collect()
}

#[test]
fn the_site_runs_what_most_run_and_else_what_the_owner_does() {
    assert_eq!(record(3).site_build(), None, "nobody has said");
    for (builds, site, differing) in [
        (&["1", "1", "1"][..], Some("1"), &[][..]),
        (&["1", "1", "2"], Some("1"), &[2]),
        (&["1", "2", "2"], Some("2"), &[0]),
        (&["1", "2"], Some("1"), &[1]),
        (&["1", "2", "3"], Some("1"), &[1, 2]),
        (&["1", "2", "2", "3", "3"], None, &[]),
    ] {
        let record = told(builds);
        assert_eq!((record.site_build(), blocked(&record).as_slice()), (site, differing), "{builds:?}");
    }
    let mut record = told(&["1", "1", "2"]);
    record.apply(&declare(3, "9", false));
    assert_eq!(record.site_build(), Some("1"), "a witness is not counted");
    record.apply(&declare(2, "2", false));
    assert!(blocked(&record).is_empty(), "who does not say that it stays away does not");
    assert!(record.differs(&device(2)));
}

#[test]
fn a_build_without_a_name_and_a_strangers_are_refused() {
    let mut record = record(2);
    let before = record.clone();
    for command in [declare(9, "1", true), declare(1, "", true), declare(1, &"x".repeat(BUILD_MAX + 1), true)]
    {
        assert!(matches!(record.apply(&command), Outcome::Refused(_)));
        assert_eq!(record, before);
    }
    assert!(matches!(record.apply(&declare(1, &"x".repeat(BUILD_MAX), true)), Outcome::Done { .. }));
}

#[test]
fn who_differs_claims_nothing_unless_it_was_named() {
    let mut record = told(&["1", "1", "2"]);
    let refused = record.apply(&claim(&record, 2, 1));
    assert!(matches!(refused, Outcome::Refused(Refusal::BuildDiffers { .. })), "{refused:?}");
    assert!(!record.candidates().contains(&&device(2)));
    // A person names it, and the owner is lost before it could hand over.
    assert!(matches!(record.apply(&transfer(&record, 2)), Outcome::Done { .. }));
    assert_eq!(record.may_claim(&device(2)), Ok(()));
    // Or it does hand over.
    record.apply(&Command::StopReceipt(StopReceipt {
        device: device(0),
        incarnation: Incarnation(1),
        epoch: record.epoch,
        successor: Some(device(2)),
        reason: String::new(),
        at_unix_ms: 8,
    }));
    assert!(matches!(record.apply(&claim(&record, 2, 1)), Outcome::Done { .. }));
    assert_eq!(record.history.back().map(|change| change.build.as_str()), Some("2"));
    // Named once is not named for ever: after a restart it is like any other.
    assert!(matches!(record.apply(&claim(&record, 2, 2)), Outcome::Refused(Refusal::BuildDiffers { .. })));
    assert_eq!(record.may_claim(&device(1)), Ok(()));
}

#[test]
fn a_paused_site_goes_on_where_it_was_whatever_runs_there() {
    let mut record = told(&["2", "1", "1"]);
    let order = crate::ownership::command::Order {
        id: 1,
        actor: "anna".into(),
        reason: String::new(),
        at_unix_ms: 7,
        base: None,
        expires_unix_ms: 0,
        until_unix_ms: None,
    };
    assert_eq!(blocked(&record), [0]);
    record.apply(&Command::Pause(order));
    assert_eq!(record.may_claim(&device(0)), Ok(()), "nobody else could");
    assert_eq!(record.may_claim(&device(1)), Err(Refusal::Paused));
}

proptest! {
    /// Whatever the devices run, somebody may own.
    #[test]
    fn never_are_all_devices_blocked(builds in prop::collection::vec(0_u8..4, 1..8), owner in 0_usize..8) {
        let names: Vec<String> = builds.iter().map(ToString::to_string).collect();
        let mut record = told(&names.iter().map(String::as_str).collect::<Vec<_>>());
        record.apply(&transfer(&record, owner % builds.len()));
        record.handover = None;
        prop_assert!(blocked(&record).len() < builds.len());
        prop_assert!(!record.candidates().is_empty());
    }

    /// In an update of the standbys one after the other, then a handover, then the old owner, there is another device that may
    /// follow at any time, and who owns is never one that nobody named.
    #[test]
    fn an_update_in_turn_always_leaves_one_that_may_follow(voters in 3_usize..8, first in 0_usize..6) {
        let mut record = told(&vec!["1"; voters]);
        let others = |record: &Record, owner: usize| {
            record.candidates().into_iter().filter(|other| **other != device(owner)).count()
        };
        for step in 0..voters - 1 {
            record.apply(&declare(1 + (first + step) % (voters - 1), "2", true));
            prop_assert!(others(&record, 0) > 0, "{step}: {record:?}");
        }
        prop_assert_eq!(record.site_build(), Some("2"));
        record.apply(&transfer(&record, 1));
        let epoch = record.epoch;
        record.apply(&Command::StopReceipt(StopReceipt {
            device: device(0),
            incarnation: Incarnation(1),
            epoch,
            successor: Some(device(1)),
            reason: String::new(),
            at_unix_ms: 8,
        }));
        let claimed = record.apply(&claim(&record, 1, 1));
        prop_assert!(matches!(claimed, Outcome::Done { .. }), "{:?}", claimed);
        prop_assert_eq!(record.epoch, epoch.next().unwrap_or(Epoch::ZERO));
        record.apply(&declare(0, "2", true));
        prop_assert!(blocked(&record).is_empty());
    }
}
