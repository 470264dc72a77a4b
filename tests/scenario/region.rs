//! Many sites return to one hub at the same time: they take turns, and none waits for ever.

use std::time::Duration;

use super::S;

#[path = "../bench/region.rs"]
mod play;

use play::Region;

/// The ownership of every site moves while the hub is away; whoever has just taken over does not know for how long it was. Ten
/// thousand sites: `cargo bench --bench hub -- region`.
#[test]
fn all_sites_of_a_hub_return_within_little_more_than_it_needs() {
    for (sites, away, failing) in [(800, 5 * S, false), (800, 45 * S, false), (1200, 300 * S, true)] {
        let region = Region { sites, away, failing, moved: 100, seed: 1 };
        let came = play::play(&region).expect("comes to an end");
        let (all, most) = (came.all(), came.least * 12 / 10);
        assert_eq!(came.took.len(), sites as usize);
        assert!(all <= most, "away for {away:?}: {all:?}, and the hub needs {:?}", came.least);
        assert!(came.refused_part() < 0.01, "{} of {} were refused", came.refused, came.asked);
        assert!(came.most_refused <= 3, "one site was refused {} times", came.most_refused);
    }
}

/// Equal seeds, equal runs.
#[test]
fn a_region_is_played_again_by_its_seed() {
    let play = |seed| {
        let region = Region { sites: 40, away: Duration::from_secs(30), failing: true, moved: 50, seed };
        play::play(&region).expect("comes to an end").took
    };
    assert_eq!(play(7), play(7));
    assert_ne!(play(7), play(8));
}
