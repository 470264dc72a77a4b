use proptest::prelude::*;

use super::*;
use crate::{
    id::{Incarnation, SiteId},
    ownership::command::{Claim, Command, Order, SetPreferred, StopReceipt, Transfer},
    site::{Member, Role, Site},
    timing::{Settings, Timing},
};

fn device(n: u8) -> DeviceId {
    DeviceId::new(format!("edge-{n}")).expect("a name")
}

fn at(s: u64) -> Moment {
    Moment::from_nanos((s + 100_000) * 1_000_000_000)
}

fn sight(seen: u32) -> Sight {
    Sight { seen, asked: 2 }
}

fn others(seen: &[(u8, u32)]) -> BTreeMap<DeviceId, Sight> {
    seen.iter().map(|(n, seen)| (device(*n), sight(*seen))).collect()
}

fn order(id: u64) -> Order {
    let (actor, reason) = ("anna".into(), String::new());
    Order { id, actor, reason, at_unix_ms: 0, base: None, expires_unix_ms: 0, until_unix_ms: None }
}

fn new_record() -> Record {
    let member = |n: u8| Member { device: device(n), address: format!("10.0.0.{n}:7600"), role: Role::Voter };
    Record::new(&Site {
        id: SiteId::new("plant-7").expect("a name"),
        members: (1..=3).map(member).collect(),
        timing: Timing::new(&Settings::default()).expect("defaults hold"),
    })
}

fn claim(record: &mut Record, n: u8, at_unix_ms: u64) {
    let base = record.epoch;
    let claim =
        Claim { device: device(n), incarnation: Incarnation(1), base, at_unix_ms, seal: None, proof: None };
    record.apply(&Command::Claim(claim));
}

/// The owner hands over to this device of its own accord.
fn hand_over(record: &mut Record, to: u8, at_unix_ms: u64) {
    let owner = record.owner.clone().expect("somebody owns");
    record.apply(&Command::StopReceipt(StopReceipt {
        device: owner.device,
        incarnation: owner.incarnation,
        epoch: record.epoch,
        successor: Some(device(to)),
        reason: String::new(),
        at_unix_ms,
    }));
    claim(record, to, at_unix_ms);
}

/// A record in which device 1 owns under epoch 1.
fn owned() -> Record {
    let mut record = new_record();
    claim(&mut record, 1, 0);
    record
}

struct Site1 {
    record: Record,
    policy: Policy,
    me: DeviceId,
    moves: Moves,
    unix_ms: u64,
}

impl Site1 {
    fn new(record: Record) -> Site1 {
        Site1 { record, policy: Policy::default(), me: device(1), moves: Moves::default(), unix_ms: 0 }
    }

    /// One look at second `s` of a device that sees so much, while the others see that.
    fn look(&mut self, s: u64, seen: u32, them: &[(u8, u32)], failing: Option<&str>) -> Advice {
        let others = others(them);
        let owns = self.record.owner.as_ref().filter(|owner| owner.device == self.me).map(|o| o.epoch);
        self.moves.look(&Outlook {
            now: at(s),
            unix_ms: self.unix_ms,
            policy: &self.policy,
            record: &self.record,
            me: &self.me,
            owns,
            sight: sight(seen),
            others: &others,
            failing,
        })
    }

    fn goes(&mut self, s: u64, seen: u32, them: &[(u8, u32)]) -> bool {
        self.look(s, seen, them, None).gives_way.is_some()
    }
}

#[test]
fn who_sees_more_for_long_enough_follows() {
    let mut site = Site1::new(owned());
    assert!(!site.goes(0, 1, &[(2, 2), (3, 1)]));
    assert!(!site.goes(4, 1, &[(2, 2), (3, 1)]));
    assert!(!site.goes(5, 1, &[(2, 1), (3, 1)]), "a moment before, it has lost it again");
    assert!(!site.goes(6, 1, &[(2, 2), (3, 1)]));
    assert!(!site.goes(10, 1, &[(2, 2), (3, 1)]));
    let advice = site.look(11, 1, &[(2, 2), (3, 1)], None);
    let words = "edge-2 sees 2 of 2 of the plant, and this device 1";
    assert_eq!((advice.gives_way.as_deref(), advice.held), (Some(words), None));
    assert!(site.goes(12, 2, &[(2, 2)]), "what was begun goes on");
    assert!(!site.goes(13, 1, &[]), "unless nobody is there any more");
}

#[test]
fn what_was_seen_before_the_ownership_began_does_not_count() {
    let mut site = Site1::new(new_record());
    assert!(!site.goes(0, 1, &[(2, 2)]));
    claim(&mut site.record, 1, 0);
    assert!(!site.goes(100, 1, &[(2, 2)]), "who was heard as a standby may just have been lost");
    assert!(site.goes(105, 1, &[(2, 2)]));
}

#[test]
fn nothing_moves_while_nobody_is_better_or_the_site_is_paused() {
    let mut site = Site1::new(owned());
    for s in 0..100 {
        assert!(!site.goes(s, 0, &[(2, 0), (3, 0)]));
        assert!(!site.goes(s, 1, &[(2, 1), (3, 0)]));
    }
    site.record.apply(&Command::Pause(order(7)));
    for s in 100..200 {
        assert_eq!(site.look(s, 0, &[(2, 2)], Some("it hangs")), Advice::default());
    }
    site.record.apply(&Command::Resume(order(8)));
    assert!(site.goes(200, 0, &[(2, 2)]));
}

#[test]
fn devices_with_other_probes_are_not_compared() {
    let (few, many) = (Sight { seen: 1, asked: 1 }, Sight { seen: 2, asked: 3 });
    assert!(!few.is_better_than(many) && !many.is_better_than(few));
    assert!(!Sight::default().is_better_than(many) && !many.is_better_than(Sight::default()));
}

#[test]
fn a_failing_workload_is_left_to_another_if_there_is_one() {
    let mut site = Site1::new(owned());
    assert_eq!(site.look(0, 2, &[], Some("it hangs")), Advice::default(), "nobody would follow");
    assert_eq!(site.look(1, 2, &[(2, 0)], Some("it hangs")).gives_way.as_deref(), Some("it hangs"));
}

#[test]
fn the_budget_counts_what_nobody_ordered_and_whoever_owned() {
    let mut site = Site1::new(owned());
    site.policy.changes_per_hour = 2;
    site.goes(0, 2, &[]);
    hand_over(&mut site.record, 2, 0);
    site.goes(10, 2, &[]);
    claim(&mut site.record, 1, 0);
    let advice = site.look(20, 0, &[(2, 2)], Some("it hangs"));
    assert_eq!(advice.gives_way, None);
    let held = advice.held.expect("it is told");
    assert!(
        held.contains("it hangs") && held.contains("2 changes") && held.contains("2 are allowed"),
        "{held}"
    );
    assert!(site.look(3609, 2, &[(2, 0)], Some("it hangs")).held.is_some());
    assert!(site.look(3610, 2, &[(2, 0)], Some("it hangs")).gives_way.is_some(), "the first is an hour old");

    let mut site = Site1::new(owned());
    site.policy.changes_per_hour = 1;
    site.goes(0, 2, &[]);
    let owner = site.record.epoch;
    site.record.apply(&Command::Transfer(Transfer {
        id: 9,
        to: device(2),
        base: owner,
        reason: String::new(),
        actor: "anna".into(),
        at_unix_ms: 0,
        expires_unix_ms: 0,
    }));
    hand_over(&mut site.record, 2, 0);
    claim(&mut site.record, 2, 0);
    site.me = device(2);
    assert!(
        site.look(1, 2, &[(1, 2)], Some("it hangs")).gives_way.is_some(),
        "a person's orders do not count"
    );
}

#[test]
fn after_a_restart_the_budget_is_read_from_the_history() {
    let mut record = owned();
    for (n, minute) in [(2, 10), (1, 20), (2, 50), (1, 55)] {
        hand_over(&mut record, n, minute * 60_000);
    }
    for (minute, limit, goes) in [(60, 4, false), (60, 5, true), (75, 4, true), (75, 3, false), (85, 3, true)]
    {
        let mut site = Site1::new(record.clone());
        (site.policy.changes_per_hour, site.unix_ms) = (limit, minute * 60_000);
        let advice = site.look(0, 2, &[(2, 2)], Some("it hangs"));
        assert_eq!(advice.gives_way.is_some(), goes, "minute {minute}, {limit} allowed");
    }
}

#[test]
fn it_goes_back_to_the_preferred_device_in_the_window_and_after_it_was_well() {
    let hour = |h: u64| h * 3_600_000;
    let mut record = owned();
    let preferred = SetPreferred { order: order(5), device: Some(device(2)) };
    record.apply(&Command::SetPreferred(preferred));
    let mut site = Site1::new(record.clone());
    site.unix_ms = hour(3);
    site.goes(0, 2, &[(2, 2)]);
    assert!(!site.goes(9999, 2, &[(2, 2)]), "not by default");

    site.policy.failback = Window::new(2 * 60, 4 * 60);
    let mut site = Site1 { moves: Moves::default(), ..site };
    assert!(!site.goes(0, 2, &[(2, 2)]));
    assert!(!site.goes(599, 2, &[(2, 2)]));
    assert!(!site.goes(600, 2, &[(2, 1)]), "it sees less");
    assert!(!site.goes(600, 1, &[(2, 1), (3, 2)]), "it would lose it again at once");
    assert!(!site.goes(601, 2, &[(3, 2)]), "it was away");
    assert!(!site.goes(602, 2, &[(2, 2)]));
    site.unix_ms = hour(5);
    assert!(!site.goes(1300, 2, &[(2, 2)]), "too late in the day");
    site.unix_ms = hour(24 + 2);
    assert!(site.goes(1301, 2, &[(2, 2)]));
}

#[test]
fn a_window_may_lie_over_midnight() {
    let minute = |h: u64, m: u64| (h * 60 + m) * 60_000;
    let night = Window::new(22 * 60, 90).expect("a window");
    for (h, m, holds) in [(21, 59, false), (22, 0, true), (0, 0, true), (1, 29, true), (1, 30, false)] {
        assert_eq!(night.holds(minute(h, m) + 86_400_000 * 9), holds, "{h}:{m}");
    }
    assert_eq!(night.to_string(), "22:00-01:30");
    assert_eq!((Window::new(5, 5), Window::new(0, 1440)), (None, None));
}

proptest! {
    /// Two devices whose probes flicker as they like, for some hours: there are never more changes in an hour than are allowed.
    #[test]
    fn no_flicker_spends_more_than_the_budget(
        flicker in proptest::collection::vec((0u32..3, 0u32..3, any::<bool>()), 1..800), limit in 0u32..5,
    ) {
        let mut record = owned();
        let mut memories = [Moves::default(), Moves::default()];
        let policy = Policy { changes_per_hour: limit, ..Policy::default() };
        let mut changes: Vec<u64> = Vec::new();
        for (n, (one, two, fails)) in flicker.into_iter().enumerate() {
            let s = n as u64 * 10;
            for (me, mine, other, theirs) in [(1, one, 2, two), (2, two, 1, one)] {
                let me_id = device(me);
                let owns = record.owner.as_ref().filter(|o| o.device == me_id).map(|o| o.epoch);
                let advice = memories[usize::from(me) - 1].look(&Outlook {
                    now: at(s),
                    unix_ms: s * 1000,
                    policy: &policy,
                    record: &record,
                    me: &me_id,
                    owns,
                    sight: sight(mine),
                    others: &others(&[(other, theirs)]),
                    failing: fails.then_some("it hangs"),
                });
                if advice.gives_way.is_some() {
                    hand_over(&mut record, other, s * 1000);
                    changes.push(s);
                }
            }
        }
        for last in &changes {
            let hour = changes.iter().filter(|s| **s <= *last && last - **s < 3600).count();
            prop_assert!(hour <= limit as usize, "{changes:?}");
        }
    }
}
