use proptest::prelude::*;

use super::*;
use crate::{
    site::Member,
    timing::{Settings, Timing},
};

fn device(n: u8) -> DeviceId {
    DeviceId::new(format!("edge-{n}")).expect("a name")
}

fn site() -> Site {
    let member = |n: u8, role| Member { device: device(n), address: format!("10.0.0.{n}:7600"), role };
    Site {
        id: SiteId::new("plant-7").expect("a name"),
        members: vec![member(1, Role::Voter), member(2, Role::Voter), member(3, Role::Witness)],
        timing: Timing::new(&Settings::default()).expect("defaults hold"),
    }
}

fn claim(n: u8, incarnation: u64, base: u64) -> Command {
    Command::Claim(Claim {
        device: device(n),
        incarnation: Incarnation(incarnation),
        base: Epoch::new(base).expect("small"),
        at_unix_ms: 5,
        seal: None,
        proof: None,
    })
}

fn receipt(n: u8, incarnation: u64, epoch: u64, successor: Option<u8>) -> Command {
    Command::StopReceipt(StopReceipt {
        device: device(n),
        incarnation: Incarnation(incarnation),
        epoch: Epoch::new(epoch).expect("small"),
        successor: successor.map(device),
        reason: "told to".into(),
        at_unix_ms: 6,
    })
}

fn transfer(id: u64, to: u8, base: u64) -> Command {
    Command::Transfer(Transfer {
        id,
        to: device(to),
        base: Epoch::new(base).expect("small"),
        reason: "maintenance".into(),
        actor: "anna".into(),
        at_unix_ms: 7,
    })
}

fn done(epoch: u64) -> Outcome {
    Outcome::Done { epoch: Epoch::new(epoch).expect("small") }
}

#[test]
fn a_planned_handover_end_to_end() {
    let mut r = Record::new(&site());
    assert_eq!(r.apply(&claim(1, 10, 0)), done(1));
    assert_eq!(r.apply(&transfer(77, 2, 1)), done(1));
    assert_eq!(r.apply(&transfer(77, 2, 1)), Outcome::Repeated);
    assert_eq!(r.apply(&receipt(1, 10, 1, Some(2))), done(1));
    assert!(r.owner.is_none());
    assert_eq!(r.apply(&claim(2, 20, 1)), done(2));
    let last = r.history.back().expect("two ownerships");
    assert_eq!(
        (last.cause, last.actor.as_str(), last.reason.as_str()),
        (Cause::HandedOver, "anna", "maintenance")
    );
    assert_eq!(r.history[0].until_unix_ms, Some(6));
    assert_eq!(r.handover, None);
}

#[test]
fn a_restarted_owner_never_resumes_its_epoch() {
    let mut r = Record::new(&site());
    r.apply(&claim(1, 10, 0));
    assert!(r.owned_by(&device(1), Incarnation(11)).is_none());
    assert_eq!(r.apply(&claim(1, 11, 1)), done(2));
    assert_eq!(r.owner.as_ref().map(|o| o.cause), Some(Cause::OwnerRestarted));
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let mut r = Record::new(&site());
    r.apply(&claim(1, 10, 0));
    let before = r.clone();
    for command in [
        claim(2, 20, 0),
        claim(1, 10, 1),
        claim(3, 30, 1),
        claim(9, 90, 1),
        receipt(2, 20, 1, None),
        receipt(1, 11, 1, None),
        receipt(1, 10, 0, None),
        transfer(1, 1, 1),
        transfer(2, 3, 1),
        transfer(3, 9, 1),
        transfer(4, 2, 0),
    ] {
        assert!(matches!(r.apply(&command), Outcome::Refused(_)), "{command:?}");
        assert_eq!(r, before, "{command:?}");
    }
}

#[test]
fn the_last_epoch_is_the_last() {
    let mut r = Record::new(&site());
    r.epoch = Epoch::MAX;
    assert_eq!(r.apply(&claim(1, 10, Epoch::MAX.get())), Outcome::Refused(Refusal::EpochsUsedUp));
}

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        (1u8..5, 0u64..3, 0u64..6).prop_map(|(n, i, b)| claim(n, i, b)),
        (1u8..5, 0u64..3, 0u64..6, proptest::option::of(1u8..5)).prop_map(|(n, i, e, s)| receipt(n, i, e, s)),
        (0u64..4, 1u8..5, 0u64..6).prop_map(|(id, to, b)| transfer(id, to, b)),
    ]
}

proptest! {
    #[test]
    fn epochs_only_grow_and_name_one_owner_each(commands in proptest::collection::vec(any_command(), 0..200)) {
        let mut r = Record::new(&site());
        let mut owners = BTreeMap::new();
        for command in &commands {
            let before = r.epoch;
            r.apply(command);
            prop_assert!(r.epoch >= before);
            prop_assert!(r.epoch.get() <= before.get() + 1);
            prop_assert!(r.owner.is_none() || r.released.is_none());
            prop_assert!(r.history.len() <= HISTORY_MAX);
            if let Some(o) = &r.owner {
                prop_assert_eq!(o.epoch, r.epoch);
                let first = owners.entry(o.epoch).or_insert_with(|| (o.device.clone(), o.incarnation));
                prop_assert_eq!(first, &(o.device.clone(), o.incarnation));
            }
        }
    }

    #[test]
    fn the_same_commands_give_the_same_record(commands in proptest::collection::vec(any_command(), 0..50), cut in 0usize..50) {
        let mut whole = Record::new(&site());
        let mut resumed = Record::new(&site());
        for (i, command) in commands.iter().enumerate() {
            if i == cut {
                // A snapshot in the middle, taken over the wire.
                resumed = serde_json::from_slice(&serde_json::to_vec(&resumed).expect("encodes")).expect("decodes");
            }
            prop_assert_eq!(whole.apply(command), resumed.apply(command));
        }
        prop_assert_eq!(whole, resumed);
    }
}

/// Why a store must not be opened with another member list (`raft/log/folder.rs`).
#[test]
fn the_same_commands_count_other_epochs_for_other_members() {
    let commands = [claim(1, 10, 0), claim(2, 20, 1), claim(1, 11, 2)];
    let mut later = site();
    later.members[0].role = Role::Witness;
    let epoch = |site: &Site| {
        let mut record = Record::new(site);
        commands.iter().for_each(|c| drop(record.apply(c)));
        record.epoch.get()
    };
    assert_eq!((epoch(&site()), epoch(&later)), (3, 0));
}
