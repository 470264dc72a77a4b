use proptest::prelude::*;

use super::*;
use crate::{
    id::{Incarnation, SiteId},
    ownership::{
        command::{Claim, Command, Drain, Order, StopReceipt, Transfer},
        record::Record,
        view::Unfit,
        vitals::Strain,
    },
    site::{Member, Role, Site},
    timing::{Settings, Timing},
};

fn device(n: u8) -> DeviceId {
    DeviceId::new(format!("edge-{n}")).expect("a name")
}

fn record(commands: &[Command]) -> Record {
    let member = |n: u8| Member { device: device(n), address: format!("10.0.0.{n}:7600"), role: Role::Voter };
    let mut record = Record::new(&Site {
        id: SiteId::new("plant-7").expect("a name"),
        members: vec![member(1), member(2), member(3)],
        timing: Timing::new(&Settings::default()).expect("defaults hold"),
    });
    for command in commands {
        record.apply(command);
    }
    record
}

fn claim(n: u8, base: u64) -> Command {
    Command::Claim(Claim {
        device: device(n),
        incarnation: Incarnation(u64::from(n)),
        base: Epoch::new(base).expect("small"),
        at_unix_ms: 0,
        seal: None,
        proof: None,
    })
}

fn receipt(n: u8, epoch: u64, successor: Option<u8>) -> Command {
    Command::StopReceipt(StopReceipt {
        device: device(n),
        incarnation: Incarnation(u64::from(n)),
        epoch: Epoch::new(epoch).expect("small"),
        successor: successor.map(device),
        reason: String::new(),
        at_unix_ms: 0,
    })
}

fn transfer(to: u8, base: u64) -> Command {
    Command::Transfer(Transfer {
        id: 1,
        to: device(to),
        base: Epoch::new(base).expect("small"),
        reason: String::new(),
        actor: String::new(),
        at_unix_ms: 0,
        expires_unix_ms: 0,
    })
}

fn order(id: u64) -> Order {
    let (actor, reason) = ("anna".into(), "maintenance".into());
    Order { id, actor, reason, at_unix_ms: 0, base: None, expires_unix_ms: 0, until_unix_ms: None }
}

fn pause() -> Command {
    Command::Pause(order(2))
}

fn drain(n: u8) -> Command {
    Command::Drain(Drain { order: order(u64::from(n) + 10), device: device(n) })
}

fn at(ms: u64) -> Moment {
    Moment::from_nanos(ms * 1_000_000)
}

fn e(n: u64) -> Epoch {
    Epoch::new(n).expect("small")
}

/// Device 1 as it looks at the record, leading and with nothing running.
fn view<'a>(record: &'a Record, me: &'a DeviceId) -> View<'a> {
    View {
        now: at(1000),
        me,
        incarnation: Incarnation(1),
        standing: Standing::Leader,
        record,
        lease: None,
        running: Running::Stopped,
        burned: None,
        unfit: None,
        successor: None,
        successor_until: None,
    }
}

#[test]
fn a_leader_without_owner_claims_and_starts_only_under_a_lease() {
    let me = device(1);
    let empty = record(&[]);
    assert_eq!(decide(&view(&empty, &me)).action, Action::Claim { base: e(0) });
    let new_leader = View { standing: Standing::NewLeader, ..view(&empty, &me) };
    assert_eq!(decide(&new_leader).action, Action::Wait);

    let mine = record(&[claim(1, 0)]);
    assert_eq!(decide(&view(&mine, &me)).reason, Reason::AwaitingLease { epoch: e(1) });
    let held = View { lease: Some((e(1), at(1400))), ..view(&mine, &me) };
    assert_eq!(decide(&held).action, Action::Start { epoch: e(1), until: at(1400) });
    let running = View { running: Running::Under(e(1)), ..held };
    assert_eq!(decide(&running).action, Action::Extend { until: at(1400) });
}

#[test]
fn the_lease_of_another_epoch_is_worth_nothing() {
    let me = device(1);
    let mine = record(&[claim(2, 0), claim(1, 1)]);
    let old = View { lease: Some((e(1), at(9000))), ..view(&mine, &me) };
    assert_eq!(decide(&old).reason, Reason::AwaitingLease { epoch: e(2) });
}

#[test]
fn at_the_end_of_the_lease_it_stops() {
    let me = device(1);
    let mine = record(&[claim(1, 0)]);
    let v = View { lease: Some((e(1), at(1000))), running: Running::Under(e(1)), ..view(&mine, &me) };
    assert_eq!(decide(&v), Decision { action: Action::Stop, reason: Reason::LeaseLapsed { epoch: e(1) } });
}

#[test]
fn a_lost_role_or_record_stops_it() {
    let me = device(1);
    let mine = record(&[claim(1, 0)]);
    let lease = Some((e(1), at(1400)));
    for standing in [Standing::Follower, Standing::NewLeader] {
        let v = View { lease, standing, running: Running::Under(e(1)), ..view(&mine, &me) };
        assert_eq!(decide(&v).reason, Reason::LeadershipLost { epoch: e(1) });
    }
    let theirs = record(&[claim(1, 0), claim(2, 1)]);
    let v = View { lease, running: Running::Under(e(1)), ..view(&theirs, &me) };
    assert_eq!(decide(&v), Decision { action: Action::Stop, reason: Reason::Superseded { epoch: e(2) } });
}

#[test]
fn only_a_leader_that_has_caught_up_starts_or_goes_on() {
    let me = device(1);
    let mine = record(&[claim(1, 0)]);
    let lease = Some((e(1), at(1400)));
    for standing in [Standing::Follower, Standing::NewLeader, Standing::Leader] {
        let stopped = View { lease, standing, ..view(&mine, &me) };
        let running = View { running: Running::Under(e(1)), ..stopped.clone() };
        let acts = standing == Standing::Leader;
        assert_eq!(matches!(decide(&stopped).action, Action::Start { .. }), acts, "{standing:?}");
        assert_eq!(matches!(decide(&running).action, Action::Extend { .. }), acts, "{standing:?}");
    }
}

#[test]
fn a_handover_stops_then_releases_then_waits_for_the_successor() {
    let me = device(1);
    let asked = record(&[claim(1, 0), transfer(2, 1)]);
    let lease = Some((e(1), at(1400)));
    let v = View { lease, running: Running::Under(e(1)), ..view(&asked, &me) };
    assert_eq!(decide(&v), Decision { action: Action::Stop, reason: Reason::HandingOver { to: device(2) } });
    let v = View { lease, running: Running::Stopping, ..view(&asked, &me) };
    assert_eq!(decide(&v).action, Action::Wait);
    let v = View { lease, ..view(&asked, &me) };
    assert_eq!(decide(&v).action, Action::Release { epoch: e(1), successor: Some(device(2)) });

    let released = record(&[claim(1, 0), transfer(2, 1), receipt(1, 1, Some(2))]);
    let v = View { successor_until: Some(at(1600)), ..view(&released, &me) };
    assert_eq!(decide(&v).reason, Reason::SuccessorFirst { to: device(2) });
    let v = View { successor_until: Some(at(1000)), ..view(&released, &me) };
    assert_eq!(decide(&v).action, Action::Claim { base: e(1) });
    let two = device(2);
    let v = View { incarnation: Incarnation(2), successor_until: Some(at(1600)), ..view(&released, &two) };
    assert_eq!(decide(&v).action, Action::Claim { base: e(1) });
}

#[test]
fn an_unfit_device_gives_up_and_never_claims() {
    let me = device(1);
    let unfit = Unfit::Leaving;
    let mine = record(&[claim(1, 0)]);
    let v = View { unfit: Some(&unfit), running: Running::Under(e(1)), ..view(&mine, &me) };
    assert_eq!(decide(&v).action, Action::Stop);
    let two = device(2);
    let v = View { unfit: Some(&unfit), successor: Some(&two), ..view(&mine, &me) };
    assert_eq!(decide(&v).action, Action::Release { epoch: e(1), successor: Some(device(2)) });
    let empty = record(&[]);
    assert_eq!(decide(&View { unfit: Some(&unfit), ..view(&empty, &me) }).action, Action::Wait);
}

#[test]
fn nobody_takes_over_a_paused_site_but_who_owned_last_or_was_named() {
    let (me, named) = (device(1), Some(device(1)));
    let by = "by anna: maintenance".to_owned();
    let theirs = record(&[claim(2, 0), pause()]);
    let paused = Decision { action: Action::Wait, reason: Reason::Paused { by } };
    assert_eq!(decide(&view(&theirs, &me)), paused);
    let left = record(&[claim(2, 0), pause(), receipt(2, 1, None)]);
    assert_eq!(decide(&view(&left, &me)), paused);
    let handed = record(&[claim(2, 0), pause(), transfer(1, 1), receipt(2, 1, Some(1))]);
    assert_eq!(handed.released.as_ref().map(|r| r.successor.clone()), Some(named));
    assert_eq!(decide(&view(&handed, &me)).action, Action::Claim { base: e(1) });
    let mine = record(&[claim(1, 0), pause()]);
    let restarted = View { incarnation: Incarnation(7), ..view(&mine, &me) };
    assert_eq!(decide(&restarted).action, Action::Claim { base: e(1) });
}

#[test]
fn a_pause_does_not_loosen_the_lease() {
    let me = device(1);
    let mine = record(&[claim(1, 0), pause()]);
    let running = View { running: Running::Under(e(1)), ..view(&mine, &me) };
    for lease in [None, Some((e(1), at(1000)))] {
        let v = View { lease, ..running.clone() };
        assert_eq!(
            decide(&v),
            Decision { action: Action::Stop, reason: Reason::LeaseLapsed { epoch: e(1) } }
        );
    }
}

#[test]
fn a_paused_owner_gives_up_only_if_it_has_to_and_names_nobody() {
    let (me, two) = (device(1), device(2));
    let strained = Unfit::Strained(Strain { stall_ms: 300, margin_ms: 200 });
    let drained = Unfit::Drained("by anna".into());
    let gives_way = Unfit::GivesWay("edge-2 sees more".into());
    let lease = Some((e(1), at(1400)));
    for (unfit, gives_up) in [
        (strained, false),
        (drained, false),
        (gives_way, false),
        (Unfit::Leaving, true),
        (Unfit::DiskFailed, true),
    ] {
        let orders = [claim(1, 0), drain(1), pause()];
        for paused in [false, true] {
            let mine = record(&orders[..if paused { 3 } else { 2 }]);
            let v = View { lease, unfit: Some(&unfit), successor: Some(&two), ..view(&mine, &me) };
            let action = match (paused, gives_up) {
                (false, _) => Action::Release { epoch: e(1), successor: Some(two.clone()) },
                (true, true) => Action::Release { epoch: e(1), successor: None },
                (true, false) => Action::Start { epoch: e(1), until: at(1400) },
            };
            assert_eq!(decide(&v).action, action, "{unfit:?}, paused: {paused}");
        }
    }
}

#[test]
fn an_owner_gives_way_only_to_somebody() {
    let (me, two) = (device(1), device(2));
    let unfit = Unfit::GivesWay("edge-2 sees more".into());
    let mine = record(&[claim(1, 0)]);
    let lease = Some((e(1), at(1400)));
    let running = View { lease, running: Running::Under(e(1)), unfit: Some(&unfit), ..view(&mine, &me) };
    assert_eq!(decide(&running).action, Action::Extend { until: at(1400) });
    let decision = decide(&View { successor: Some(&two), ..running });
    let reason = Reason::Unfit { why: "edge-2 sees more".into() };
    assert_eq!(decision, Decision { action: Action::Stop, reason });
}

#[test]
fn a_drained_device_goes_on_where_nobody_would_follow_and_claims_nothing() {
    let (me, two) = (device(1), device(2));
    let drained = Unfit::Drained("by anna".into());
    let mine = record(&[claim(1, 0), drain(1)]);
    let running = View {
        lease: Some((e(1), at(1400))),
        running: Running::Under(e(1)),
        unfit: Some(&drained),
        ..view(&mine, &me)
    };
    assert_eq!(decide(&running).action, Action::Extend { until: at(1400) });
    assert_eq!(decide(&View { successor: Some(&two), ..running }).action, Action::Stop);
    let theirs = record(&[claim(2, 0), drain(1)]);
    assert_eq!(decide(&view(&theirs, &me)).action, Action::Wait, "also before its own loops know it");
    let restarted = View { incarnation: Incarnation(7), ..view(&mine, &me) };
    assert_eq!(decide(&restarted).action, Action::Claim { base: e(1) }, "nobody else has claimed");
}

proptest! {
    /// The workload is started or kept only where all four facts agree; and what runs under anything else is stopped.
    #[test]
    fn runs_only_where_all_four_agree(
        claims in proptest::collection::vec((1u8..4, any::<bool>()), 0..6),
        handover in any::<bool>(), leaving in any::<bool>(), standing in 0u8..3, running in 0u8..3,
        running_epoch in proptest::option::of(0u64..7), lease_epoch in proptest::option::of(0u64..7), lease_ms in 0u64..2000, has_lease in any::<bool>(),
        incarnation in 1u64..3, window in proptest::option::of(0u64..2000),
    ) {
        let mut r = record(&[]);
        for (n, leaves) in claims {
            let base = r.epoch.get();
            r.apply(&claim(n, base));
            if leaves { r.apply(&receipt(n, base + 1, Some(2))); }
        }
        if handover { let base = r.epoch.get(); r.apply(&transfer(2, base)); }
        let me = device(1);
        let unfit = Unfit::Leaving;
        // Mostly they are of the present ownership: that is where it gets close.
        let (running_epoch, lease_epoch) = (running_epoch.unwrap_or(r.epoch.get()), lease_epoch.unwrap_or(r.epoch.get()));
        let v = View {
            standing: [Standing::Follower, Standing::NewLeader, Standing::Leader][usize::from(standing)],
            running: [Running::Stopped, Running::Under(e(running_epoch)), Running::Stopping][usize::from(running)],
            lease: has_lease.then(|| (e(lease_epoch), at(lease_ms))),
            incarnation: Incarnation(incarnation),
            unfit: leaving.then_some(&unfit),
            successor_until: window.map(at),
            ..view(&r, &me)
        };
        let owner_epoch = r.owned_by(&me, v.incarnation).map(|o| o.epoch);
        let lease_holds = |epoch| has_lease && e(lease_epoch) == epoch && at(lease_ms) > v.now;
        let decision = decide(&v);
        match decision.action {
            Action::Start { epoch, until } => {
                prop_assert_eq!(Some(epoch), owner_epoch);
                prop_assert!(v.standing == Standing::Leader && lease_holds(epoch) && !leaving);
                prop_assert!(v.running == Running::Stopped && until == at(lease_ms));
            }
            Action::Extend { until } => {
                prop_assert_eq!(v.running, Running::Under(owner_epoch.expect("own")));
                prop_assert!(v.standing == Standing::Leader && lease_holds(e(running_epoch)) && until == at(lease_ms));
            }
            Action::Claim { base } => {
                prop_assert_eq!(base, r.epoch);
                prop_assert!(v.standing == Standing::Leader && v.running == Running::Stopped && !leaving);
            }
            Action::Release { epoch, .. } => {
                prop_assert_eq!(Some(epoch), owner_epoch);
                prop_assert_eq!(v.running, Running::Stopped);
            }
            Action::Stop => prop_assert!(matches!(v.running, Running::Under(_))),
            Action::Wait => prop_assert!(!matches!(v.running, Running::Under(_))),
        }
        prop_assert!(!decision.reason.to_string().is_empty() && !decision.reason.name().is_empty());
    }
}

#[test]
fn others_are_told_of_a_device_by_its_name() {
    let edge = DeviceId::new("edge-7").expect("a name");
    let of = |why: &str| Reason::Unfit { why: why.into() }.of(&edge);
    assert_eq!(
        of("this device is drained by anna: this device is old"),
        "edge-7 is drained by anna: this device is old"
    );
    assert_eq!(of("this sidecar is shutting down"), "edge-7's sidecar is shutting down");
}
