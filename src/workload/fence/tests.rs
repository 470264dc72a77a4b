use proptest::prelude::*;

use super::*;

const KILL_AFTER: Duration = Duration::from_millis(150);
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

fn at(ms: u64) -> Moment {
    Moment::default() + Duration::from_millis(ms)
}

fn epoch(n: u64) -> Epoch {
    Epoch::new(n).expect("small")
}

fn start(e: u64, ms: u64) -> Input {
    Input::Said(Command::Start { epoch: epoch(e), until: at(ms), secret: Some(secret()) })
}

fn secret() -> Secret {
    Secret::from_bytes([7; 32])
}

fn extend(e: u64, ms: u64) -> Input {
    Input::Said(Command::Extend { epoch: epoch(e), until: at(ms) })
}

fn ended() -> Input {
    Input::MainEnded { how: Text::new("exit code 3") }
}

fn running() -> Fence {
    let mut fence = Fence::new(KILL_AFTER, STOP_TIMEOUT);
    assert_eq!(fence.step(at(0), start(7, 400)), [Deed::Spawn(epoch(7))]);
    assert_eq!(fence.step(at(1), Input::Spawned { pid: 42 }), []);
    assert_eq!(fence.step(at(2), Input::Executed), [Deed::Tell(Event::Running { epoch: epoch(7), pid: 42 })]);
    fence
}

#[test]
fn the_deadline_needs_no_message() {
    let mut fence = running();
    assert_eq!(fence.wake_at(), Some(at(400)));
    assert_eq!(fence.step(at(399), Input::Tick), []);
    assert_eq!(
        fence.step(at(400), Input::Tick),
        [Deed::Term, Deed::Tell(Event::Stopping { epoch: epoch(7) })]
    );
    assert_eq!(fence.wake_at(), Some(at(550)));
    assert_eq!(fence.step(at(550), Input::Tick), [Deed::Kill]);
    assert!(fence.killing());
    assert_eq!(
        fence.step(at(551), Input::NothingLeft),
        [Deed::Tell(Event::Stopped { epoch: epoch(7), at: at(551) })]
    );
    assert!(!fence.occupied());
}

#[test]
fn waking_long_after_the_deadline_kills_at_once() {
    let mut fence = running();
    assert_eq!(
        fence.step(at(3_600_000), extend(7, 4_000_000)),
        [Deed::Term, Deed::Tell(Event::Stopping { epoch: epoch(7) }), Deed::Kill]
    );
}

#[test]
fn extending_moves_forward_only_and_only_the_own_epoch() {
    let mut fence = running();
    fence.step(at(10), extend(7, 300));
    assert_eq!(fence.wake_at(), Some(at(400)));
    fence.step(at(10), extend(8, 900));
    assert_eq!(fence.wake_at(), Some(at(400)));
    fence.step(at(10), extend(7, 500));
    assert_eq!(fence.wake_at(), Some(at(500)));
    fence.step(at(10), Input::Said(Command::Extend { epoch: epoch(7), until: Moment::from_nanos(u64::MAX) }));
    assert_eq!(fence.wake_at(), Some(at(10) + HORIZON));
}

#[test]
fn a_start_that_is_late_or_a_second_one_is_refused() {
    let mut fence = Fence::new(KILL_AFTER, STOP_TIMEOUT);
    assert_eq!(fence.step(at(400), start(7, 400)), [Deed::Tell(Event::Late { epoch: epoch(7) })]);
    let mut fence = running();
    assert_eq!(fence.step(at(5), start(8, 600)), [Deed::Tell(Event::Busy { epoch: epoch(8) })]);
    assert_eq!(fence.wake_at(), Some(at(400)));
}

#[test]
fn a_stop_near_the_deadline_does_not_win_time() {
    let mut fence = running();
    fence.step(at(390), Input::Said(Command::Stop));
    assert_eq!(fence.wake_at(), Some(at(550)));
    fence.step(at(395), Input::Said(Command::Stop));
    assert_eq!(fence.wake_at(), Some(at(550)));
    // From the deadline on nothing moves it any more, and the sidecar is not needed.
    fence.step(at(400), extend(7, 5_000));
    assert_eq!(fence.wake_at(), Some(at(550)));
    assert_eq!(fence.step(at(550), Input::Tick), [Deed::Kill]);
}

#[test]
fn a_stop_in_good_time_has_as_long_as_the_lease_is_renewed() {
    let mut fence = running();
    fence.step(at(10), Input::Said(Command::Stop));
    assert_eq!(fence.wake_at(), Some(at(550)), "no longer than the deadline allows");
    fence.step(at(390), extend(7, 800));
    assert_eq!(fence.wake_at(), Some(at(950)));
    fence.step(at(790), extend(8, 9_000));
    assert_eq!(fence.wake_at(), Some(at(950)), "another epoch's deadline is none of its");
    fence.step(at(790), extend(7, 9_000));
    assert_eq!(fence.wake_at(), Some(at(10) + STOP_TIMEOUT), "and no longer than its own time");
    assert_eq!(fence.step(at(10) + STOP_TIMEOUT, Input::Tick), [Deed::Kill]);
}

#[test]
fn a_crash_clears_the_rest_then_pauses_longer_each_time() {
    let mut fence = Fence::new(KILL_AFTER, STOP_TIMEOUT);
    fence.step(at(0), start(7, 50_000));
    let mut now = 10;
    for (failures, pause) in [(1, 200), (2, 400), (3, 800), (4, 1600)] {
        fence.step(at(now), Input::Spawned { pid: 42 });
        fence.step(at(now), Input::Executed);
        assert_eq!(fence.step(at(now), ended()), []);
        assert!(fence.killing() && fence.occupied());
        let how = Text::new("exit code 3");
        assert_eq!(
            fence.step(at(now), Input::NothingLeft),
            [Deed::Tell(Event::Exited { epoch: epoch(7), failures, how })]
        );
        assert!(!fence.occupied());
        assert_eq!(fence.step(at(now + pause - 1), Input::Tick), []);
        now += pause;
        assert_eq!(fence.step(at(now), Input::Tick), [Deed::Spawn(epoch(7))]);
    }
}

#[test]
fn a_steady_run_clears_the_failures() {
    let mut fence = Fence::new(KILL_AFTER, STOP_TIMEOUT);
    fence.step(at(0), start(7, 50_000));
    fence.step(at(0), ended());
    fence.step(at(0), Input::NothingLeft);
    assert_eq!(fence.step(at(200), Input::Tick), [Deed::Spawn(epoch(7))]);
    fence.step(at(200), Input::Executed);
    fence.step(at(40_000), extend(7, 90_000));
    fence.step(at(60_200), ended());
    let how = Text::new("exit code 3");
    assert_eq!(
        fence.step(at(60_201), Input::NothingLeft),
        [Deed::Tell(Event::Exited { epoch: epoch(7), failures: 1, how })]
    );
}

#[test]
fn the_pause_is_bounded() {
    assert_eq!(pause_after(1), PAUSE_FIRST);
    assert_eq!(pause_after(u32::MAX), PAUSE_LONGEST);
}

#[test]
fn no_restart_after_the_deadline() {
    let mut fence = running();
    fence.step(at(350), ended());
    fence.step(at(351), Input::NothingLeft);
    assert_eq!(fence.wake_at(), Some(at(400)));
    assert_eq!(
        fence.step(at(700), Input::Tick),
        [Deed::Tell(Event::Stopped { epoch: epoch(7), at: at(700) })]
    );
}

#[test]
fn a_lost_sidecar_ends_the_workload_and_then_the_fencer() {
    let mut fence = running();
    assert_eq!(
        fence.step(at(20), Input::SidecarGone),
        [Deed::Term, Deed::Tell(Event::Stopping { epoch: epoch(7) })]
    );
    assert_eq!(fence.wake_at(), Some(at(170)));
    assert_eq!(
        fence.step(at(30), Input::NothingLeft),
        [
            Deed::Tell(Event::Stopped { epoch: epoch(7), at: at(30) }),
            Deed::Attest(Receipt { epoch: epoch(7), secret: secret() }),
            Deed::Leave
        ]
    );
    assert_eq!(Fence::new(KILL_AFTER, STOP_TIMEOUT).step(at(0), Input::SidecarGone), [Deed::Leave]);
}

#[test]
fn a_run_that_has_ended_gives_no_receipt() {
    let mut fence = running();
    fence.step(at(400), Input::Tick);
    fence.step(at(410), Input::NothingLeft);
    assert_eq!(fence.step(at(500), Input::SidecarGone), [Deed::Leave]);
}

#[derive(Debug, Clone)]
enum Fate {
    Wait(u64),
    Say(Input),
    Crash,
    Exec,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => (0u64..700).prop_map(Fate::Wait),
        2 => (1u64..4, 0u64..9_000).prop_map(|(e, ms)| Fate::Say(start(e, ms))),
        3 => (1u64..4, 0u64..9_000).prop_map(|(e, ms)| Fate::Say(extend(e, ms))),
        1 => Just(Fate::Say(Input::Said(Command::Stop))),
        1 => Just(Fate::Say(Input::SidecarGone)),
        2 => Just(Fate::Crash),
        2 => Just(Fate::Exec),
    ]
}

proptest! {
    /// A workload that is deaf to TERM, and a world that does anything: the fence never lets it live past the last
    /// deadline that was given in time, plus `kill_after`.
    #[test]
    fn nothing_outlives_its_deadline(fates in prop::collection::vec(fate(), 1..60)) {
        let mut fence = Fence::new(KILL_AFTER, STOP_TIMEOUT);
        let mut now = at(0);
        // The model: what runs, and the largest deadline that was handed over before it passed.
        let mut alive = false;
        let mut limit = at(0);
        let mut of = Epoch::ZERO;
        for fate in fates.into_iter().chain([Fate::Wait(20_000)]) {
            let (target, input) = match fate {
                Fate::Wait(ms) => (now + Duration::from_millis(ms), Input::Tick),
                Fate::Say(input) => (now, input),
                Fate::Crash if alive => (now, ended()),
                Fate::Exec if alive => (now, Input::Executed),
                Fate::Crash | Fate::Exec => continue,
            };
            // Time passes by the fence's own wakes first, as poll does it.
            while let Some(wake) = fence.wake_at().filter(|wake| *wake <= target) {
                now = now.max(wake);
                for deed in fence.step(now, Input::Tick) {
                    match deed {
                        Deed::Kill => alive = false,
                        Deed::Spawn(_) => { prop_assert!(!alive && now < limit); alive = true; }
                        _ => {}
                    }
                }
                if !alive && fence.occupied() { fence.step(now, Input::NothingLeft); }
                prop_assert!(!alive || now < limit + KILL_AFTER);
                prop_assert!(fence.wake_at().is_none_or(|next| next > now), "a wake was not dealt with");
            }
            now = target;
            if let Input::Said(Command::Extend { epoch, until }) = &input
                && *epoch == of && now < limit { limit = limit.max(*until); }
            let crashed = matches!(input, Input::MainEnded { .. });
            let started = match &input {
                Input::Said(Command::Start { epoch, until, .. }) => Some((*epoch, *until)),
                _ => None,
            };
            if crashed { alive = false; }
            for deed in fence.step(now, input) {
                match deed {
                    Deed::Kill => alive = false,
                    Deed::Spawn(epoch) => {
                        if let Some((e, until)) = started && e == epoch { of = e; limit = until; }
                        prop_assert!(!alive && now < limit);
                        alive = true;
                    }
                    _ => {}
                }
            }
            if !alive && fence.occupied() { fence.step(now, Input::NothingLeft); }
            prop_assert!(!alive || now < limit + KILL_AFTER, "alive at {now}, limit {limit}");
        }
        prop_assert!(!alive, "something lives at the end");
    }
}
