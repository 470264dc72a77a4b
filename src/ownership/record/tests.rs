use proptest::prelude::*;

use super::*;
use crate::{
    ownership::command::{
        ConfirmMirror, DeclareBuild, Drain, DrainExactly, EndPause, LimitTiming, Order, RaiseFloor,
        SetPreferred,
    },
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
        expires_unix_ms: 0,
    })
}

fn e(n: u64) -> Epoch {
    Epoch::new(n).expect("small")
}

fn order(id: u64) -> Order {
    let (actor, reason) = ("anna".into(), format!("order {id}"));
    Order { id, actor, reason, at_unix_ms: 7, base: None, expires_unix_ms: 0, until_unix_ms: None }
}

fn pause(id: u64) -> Command {
    Command::Pause(order(id))
}

fn drain(id: u64, n: u8) -> Command {
    Command::Drain(Drain { order: order(id), device: device(n) })
}

fn drain_exactly(id: u64, devices: &[u8]) -> Command {
    let devices = devices.iter().copied().map(device).collect();
    Command::DrainExactly(DrainExactly { order: order(id), devices })
}

fn undrain(id: u64, n: u8) -> Command {
    Command::Undrain(Drain { order: order(id), device: device(n) })
}

fn prefer(id: u64, n: Option<u8>) -> Command {
    Command::SetPreferred(SetPreferred { order: order(id), device: n.map(device) })
}

fn limit(id: u64, least: Option<u32>) -> Command {
    Command::LimitTiming(LimitTiming { order: order(id), least })
}

fn confirm(epoch: u64, n: u8) -> Command {
    let etags = [1, 9].map(|n| (device(n), format!("etag {epoch}"))).into();
    Command::ConfirmMirror(ConfirmMirror { epoch: e(epoch), by: device(n), etags, at_unix_ms: 8 })
}

fn declare(n: u8, build: u8, blocks: bool) -> Command {
    let declared = Declared { build: build.to_string(), blocks };
    Command::DeclareBuild(DeclareBuild { device: device(n), declared })
}

fn raise(above: u64) -> Command {
    Command::RaiseFloor(RaiseFloor { above: e(above), seen_in: "edge-1".into() })
}

fn refusal(r: &mut Record, command: &Command) -> Refusal {
    let before = r.clone();
    let outcome = r.apply(command);
    assert_eq!(*r, before, "what is refused changes nothing: {command:?}");
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("{command:?}: {other:?}"),
    }
}

fn done(epoch: u64) -> Outcome {
    Outcome::Done { epoch: Epoch::new(epoch).expect("small") }
}

#[test]
fn a_planned_handover_end_to_end() {
    let mut r = Record::new(&site());
    assert_eq!(r.apply(&claim(1, 10, 0)), done(1));
    assert_eq!(r.apply(&transfer(77, 2, 1)), done(1));
    assert_eq!(r.apply(&transfer(77, 2, 1)), Outcome::Repeated { epoch: e(1) });
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
fn why_an_owner_gave_up_is_kept_whoever_follows() {
    for (named, next, cause, reason) in [
        (Some(2), 2, Cause::HandedOver, "told to"),
        (None, 2, Cause::OwnerLeft, "the owner left: told to"),
        (Some(2), 1, Cause::HandoverFailed, "the chosen successor did not take over: told to"),
    ] {
        let mut r = Record::new(&site());
        r.apply(&claim(1, 10, 0));
        r.apply(&receipt(1, 10, 1, named));
        assert_eq!(r.apply(&claim(next, 20, 1)), done(2));
        let last = r.history.back().expect("two ownerships");
        assert_eq!((last.cause, last.reason.as_str()), (cause, reason));
    }
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
        drain(5, 3),
        drain(6, 9),
        drain_exactly(14, &[1, 9]),
        drain_exactly(15, &[1, 2]),
        undrain(7, 9),
        prefer(8, Some(3)),
        prefer(9, Some(9)),
        limit(10, Some(99)),
        limit(11, Some(6401)),
        confirm(2, 1),
        confirm(1, 9),
        raise(1_000_002),
        Command::Pause(Order { base: Some(e(0)), ..order(12) }),
        Command::Resume(Order { base: Some(e(2)), ..order(13) }),
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

#[test]
fn a_repeat_is_answered_with_the_first_outcome_and_changes_nothing() {
    let mut r = Record::new(&site());
    assert_eq!(r.apply(&pause(1)), done(0));
    assert_eq!(r.apply(&Command::Resume(order(2))), done(0));
    r.apply(&claim(1, 10, 0));
    assert_eq!(r.apply(&pause(1)), Outcome::Repeated { epoch: e(0) });
    assert_eq!(r.paused, None, "the pause was executed once, and lifted");
    let stale = Command::Pause(Order { base: Some(e(0)), ..order(1) });
    assert_eq!(r.apply(&stale), Outcome::Repeated { epoch: e(0) }, "although it would be stale by now");
}

#[test]
fn orders_are_idempotent_and_keep_the_first_note() {
    let mut r = Record::new(&site());
    for id in [1, 2] {
        assert_eq!((r.apply(&pause(id)), r.apply(&drain(10 + id, 1))), (done(0), done(0)));
    }
    let kept = (r.paused.as_ref().map(|note| note.id), r.drained.get(&device(1)).map(|note| note.id));
    assert_eq!(kept, (Some(1), Some(11)));
    for id in [21, 22] {
        assert_eq!((r.apply(&Command::Resume(order(id))), r.apply(&undrain(10 + id, 1))), (done(0), done(0)));
    }
    assert_eq!((&r.paused, r.drained.len()), (&None, 0));
    for (id, devices) in [(51, vec![1]), (52, vec![1]), (53, vec![2]), (54, vec![])] {
        assert_eq!(r.apply(&drain_exactly(id, &devices)), done(0));
        let notes: Vec<_> = r.drained.iter().map(|(device, note)| (device.clone(), note.id)).collect();
        let first = if id == 52 { 51 } else { id };
        assert_eq!(notes, devices.iter().map(|n| (device(*n), first)).collect::<Vec<_>>());
    }
    r.apply(&prefer(41, Some(2)));
    r.apply(&limit(42, Some(150)));
    assert_eq!((r.preferred.clone(), r.least_stretch), (Some(device(2)), Some(150)));
    r.apply(&prefer(43, None));
    r.apply(&limit(44, None));
    assert_eq!((r.preferred.clone(), r.least_stretch), (None, None));
}

#[test]
fn of_two_pauses_the_one_that_ends_last_counts() {
    let pause = |id, until_unix_ms| Command::Pause(Order { until_unix_ms, ..order(id) });
    let in_force = |orders: &[(u64, Option<u64>)]| {
        let mut r = Record::new(&site());
        orders.iter().for_each(|(id, until)| assert_eq!(r.apply(&pause(*id, *until)), done(0)));
        r.paused.as_ref().map(|note| (note.id, note.until_unix_ms))
    };
    assert_eq!(in_force(&[(1, Some(50)), (2, Some(60))]), Some((2, Some(60))));
    assert_eq!(in_force(&[(1, Some(60)), (2, Some(50))]), Some((1, Some(60))));
    assert_eq!(in_force(&[(1, Some(60)), (2, None)]), Some((2, None)));
    assert_eq!(in_force(&[(1, None), (2, Some(60))]), Some((1, None)));
}

#[test]
fn the_end_of_a_pause_is_that_pauses_own() {
    let end = |pause| Command::EndPause(EndPause { pause });
    let mut r = Record::new(&site());
    assert_eq!(r.apply(&end(1)), done(0), "there is none");
    let pause = |id, until_unix_ms| Command::Pause(Order { until_unix_ms, ..order(id) });
    r.apply(&pause(1, Some(50)));
    r.apply(&Command::Resume(order(2)));
    r.apply(&pause(3, Some(60)));
    let before = r.clone();
    assert_eq!(r.apply(&end(1)), done(0), "decided upon before somebody resumed and paused again");
    assert_eq!(r, before);
    assert_eq!(r.apply(&end(3)), done(0));
    assert_eq!(r.paused, None);
    r.apply(&pause(4, None));
    r.apply(&end(4));
    assert!(r.paused.is_some(), "it has no end");
}

#[test]
fn a_pause_of_before_there_were_ends_has_none() {
    let old = r#"{"command":"pause","id":5,"actor":"anna","reason":"","at_unix_ms":7}"#;
    let mut r = Record::new(&site());
    r.apply(&serde_json::from_str(old).expect("reads"));
    assert_eq!(r.paused.as_ref().map(|note| note.until_unix_ms), Some(None));
    let ends = Command::Pause(Order { until_unix_ms: Some(60), ..order(6) });
    let back: Command = serde_json::from_slice(&serde_json::to_vec(&ends).expect("writes")).expect("reads");
    assert_eq!(back, ends);
}

#[test]
fn while_paused_only_who_owned_last_or_was_named_claims() {
    let mut r = Record::new(&site());
    r.apply(&pause(1));
    assert_eq!(refusal(&mut r, &claim(1, 10, 0)), Refusal::Paused, "nobody ever owned");
    r.apply(&Command::Resume(order(2)));
    r.apply(&claim(1, 10, 0));
    r.apply(&pause(3));
    assert_eq!(refusal(&mut r, &claim(2, 20, 1)), Refusal::Paused);
    assert_eq!(r.apply(&claim(1, 11, 1)), done(2), "its own restarted sidecar");
    r.apply(&receipt(1, 11, 2, None));
    assert_eq!(refusal(&mut r, &claim(2, 20, 2)), Refusal::Paused);
    assert_eq!(r.apply(&claim(1, 12, 2)), done(3), "also after it left");
    assert_eq!(r.apply(&transfer(4, 2, 3)), done(3), "a person's handover goes on");
    r.apply(&receipt(1, 12, 3, Some(2)));
    assert_eq!(r.apply(&claim(2, 20, 3)), done(4));
    r.apply(&Command::Resume(order(5)));
    assert_eq!(r.apply(&claim(1, 13, 4)), done(5));
}

#[test]
fn a_drained_device_goes_on_with_what_it_owns_and_claims_nothing_else() {
    let mut r = Record::new(&site());
    r.apply(&claim(1, 10, 0));
    r.apply(&drain(1, 1));
    assert_eq!(r.apply(&claim(1, 11, 1)), done(2), "its restarted sidecar, where nobody else has claimed");
    r.apply(&receipt(1, 11, 2, Some(2)));
    let drained = Refusal::Drained { device: device(1) };
    assert_eq!(refusal(&mut r, &claim(1, 11, 2)), drained);
    r.apply(&claim(2, 20, 2));
    assert_eq!(refusal(&mut r, &claim(1, 11, 3)), drained);
    assert_eq!(refusal(&mut r, &transfer(2, 1, 3)), drained);
    assert_eq!(refusal(&mut r, &drain(3, 2)), Refusal::NoneLeft, "the third is a witness");
    assert_eq!(refusal(&mut r, &drain_exactly(5, &[1, 2])), Refusal::NoneLeft);
    r.apply(&undrain(4, 1));
    assert_eq!(r.apply(&claim(1, 11, 3)), done(4));
}

#[test]
fn twins_raise_the_next_epoch_and_nothing_else() {
    let mut r = Record::new(&site());
    r.apply(&claim(1, 10, 0));
    let owner = r.owner.clone();
    assert_eq!(r.apply(&raise(40)), done(1));
    assert_eq!(r.apply(&raise(30)), done(1));
    assert_eq!((&r.owner, r.epoch, r.floor), (&owner, e(1), e(40)));
    assert_eq!(r.apply(&claim(2, 20, 1)), done(41));
    let before = r.clone();
    assert_eq!(r.apply(&raise(41)), done(41));
    assert_eq!(r, before, "the site is there already");
    let far = Refusal::EpochTooFar { now: e(41), above: e(1_000_042) };
    assert_eq!(refusal(&mut r, &raise(1_000_042)), far);
    assert_eq!(r.apply(&raise(1_000_041)), done(41));
    assert_eq!(r.apply(&claim(1, 11, 41)), done(1_000_042));
    r.epoch = e(Epoch::MAX.get() - 1);
    let far = Refusal::EpochTooFar { now: r.epoch, above: Epoch::MAX };
    assert_eq!(refusal(&mut r, &raise(Epoch::MAX.get())), far, "one is left for the next owner");
}

#[test]
fn what_the_twins_show_never_goes_back() {
    let mut r = Record::new(&site());
    for (n, base) in [(1, 0), (2, 1), (1, 2)] {
        r.apply(&claim(n, 10 + base, base));
    }
    assert_eq!(r.apply(&confirm(2, 1)), done(3));
    assert_eq!(refusal(&mut r, &confirm(1, 1)), Refusal::Superseded { now: e(2), base: e(1) });
    assert_eq!(refusal(&mut r, &confirm(4, 1)), Refusal::Superseded { now: e(3), base: e(4) });
    assert_eq!(r.apply(&confirm(2, 2)), done(3));
    let mirrored = r.mirrored.as_ref().expect("confirmed");
    assert_eq!((mirrored.epoch, &mirrored.by), (e(2), &device(2)));
    assert_eq!(mirrored.etags, [(device(1), "etag 2".to_owned())].into(), "of members alone");
    assert_eq!(r.apply(&confirm(3, 2)), done(3));
}

#[test]
fn who_is_chosen_is_fit_by_the_record_and_the_preferred_one_first() {
    let mut four = site();
    four.members.push(Member { device: device(4), address: "10.0.0.4:7600".into(), role: Role::Voter });
    let mut r = Record::new(&four);
    let chosen = |r: &Record| r.candidates().into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(chosen(&r), [1, 2, 4].map(device));
    r.apply(&prefer(1, Some(4)));
    assert_eq!(chosen(&r), [4, 1, 2].map(device));
    r.apply(&drain(2, 4));
    r.apply(&drain(3, 1));
    assert_eq!(chosen(&r), [device(2)]);
}

/// A record and commands as they were written before there were orders.
#[test]
fn what_an_older_version_wrote_is_read() {
    let mut value = serde_json::to_value(Record::new(&site())).expect("encodes");
    let fields = value.as_object_mut().expect("an object");
    for later in ["paused", "drained", "preferred", "least_stretch", "mirrored", "floor", "once"] {
        assert!(fields.remove(later).is_some(), "{later}");
    }
    fields.insert("handled".into(), serde_json::json!([7]));
    let read: Record = serde_json::from_value(value).expect("reads");
    assert_eq!(read, Record::new(&site()));
    let mut command = serde_json::to_value(transfer(1, 2, 0)).expect("encodes");
    command.as_object_mut().expect("an object").remove("expires_unix_ms");
    assert_eq!(serde_json::from_value::<Command>(command).expect("reads"), transfer(1, 2, 0));
}

#[test]
fn what_a_later_version_adds_to_an_order_is_ignored() {
    for command in [pause(1), drain(2, 1), prefer(3, None), limit(4, Some(200)), confirm(1, 1), raise(4)] {
        let mut value = serde_json::to_value(&command).expect("encodes");
        value["later"] = serde_json::json!({"deep": [1]});
        assert_eq!(serde_json::from_value::<Command>(value).expect("reads"), command);
    }
}

fn any_order() -> impl Strategy<Value = Command> {
    let id = || 0u64..40;
    prop_oneof![
        id().prop_map(pause),
        (id(), proptest::option::of(0u64..6)).prop_map(|(id, base)| {
            Command::Resume(Order { base: base.map(e), expires_unix_ms: 9 + id, ..order(id) })
        }),
        (id(), 1u8..5).prop_map(|(id, n)| drain(id, n)),
        (id(), 1u8..5).prop_map(|(id, n)| undrain(id, n)),
        (id(), proptest::collection::vec(1u8..4, 0..3)).prop_map(|(id, them)| drain_exactly(id, &them)),
        (id(), proptest::option::of(1u8..5)).prop_map(|(id, n)| prefer(id, n)),
        (id(), proptest::option::of(0u32..7000)).prop_map(|(id, least)| limit(id, least)),
        (0u64..8, 1u8..5).prop_map(|(epoch, n)| confirm(epoch, n)),
        (1u8..5, 0u8..3, any::<bool>()).prop_map(|(n, build, blocks)| declare(n, build, blocks)),
        prop_oneof![0u64..8, 0u64..=Epoch::MAX.get()].prop_map(raise),
    ]
}

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![2 => any_change(), 1 => any_order()]
}

fn any_change() -> impl Strategy<Value = Command> {
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
            let before = r.clone();
            let outcome = r.apply(command);
            let raised = matches!(command, Command::Claim(_)) && matches!(outcome, Outcome::Done { .. });
            let next = before.epoch.max(before.floor).next().expect("few");
            prop_assert_eq!(r.epoch, if raised { next } else { before.epoch });
            prop_assert!(r.floor.get() <= r.epoch.get() + FLOOR_AHEAD);
            prop_assert!(r.floor >= before.floor);
            prop_assert!(r.mirrored.as_ref().map(|m| m.epoch) >= before.mirrored.as_ref().map(|m| m.epoch));
            let moves = matches!(command, Command::Claim(_) | Command::StopReceipt(_));
            prop_assert!(moves || (&r.owner, &r.released) == (&before.owner, &before.released));
            if !matches!(outcome, Outcome::Done { .. }) {
                prop_assert_eq!(&r, &before);
            }
            if raised && before.paused.is_some() {
                let named = before.released.as_ref().and_then(|released| released.successor.as_ref());
                let last = before.history.back().map(|last| &last.device);
                let claimer = r.owner.as_ref().map(|owner| &owner.device);
                prop_assert!([named, last].contains(&claimer));
            }
            prop_assert!(r.once.len() <= HANDLED_MAX);
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
