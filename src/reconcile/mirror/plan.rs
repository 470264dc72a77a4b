//! What the mirror does next: a pure function of what the site has agreed and what is known of the twins.
//!
//! Four rules, in this order. Every twin is known before any is written: read, or confirmed before under an etag. While a
//! twin shows a higher epoch than the site has reached, nothing is written at all: whoever is behind must not speak. The
//! old owner's flag is cleared before the new owner's is set, and the bystanders' come last. What is equal is not written.

use std::collections::BTreeMap;

use crate::{
    hub::{Flag, Published, Target, flag::Seen},
    ownership::record::FLOOR_AHEAD,
};

/// What is known of one twin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Nothing, or nothing that is still certain: it has to be read.
    Unread,
    /// The hub does not know the device or module. There is no flag to clear and none to set.
    Missing,
    /// The hub refuses requests for this twin alone. The others do not wait for it.
    Refused(String),
    /// The twin as it was read, as it was after our last write, or as the site has confirmed it before.
    Twin {
        /// The etag that a write must name.
        etag: String,
        /// What stands where the flag belongs.
        seen: Seen,
        /// Whether the identity may not connect.
        disabled: bool,
    },
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read this twin.
    Read(Target),
    /// Write this flag, if the twin still has this etag.
    Write {
        /// Whose twin.
        target: Target,
        /// The flag.
        flag: Flag,
        /// The etag of the twin that was compared.
        etag: String,
    },
    /// These twins show a higher epoch than the site has reached. Write nothing.
    Ahead(Vec<(Target, u64)>),
    /// Every twin that can be written shows what it should.
    Done,
}

/// All twins that are mirrored: each device's, and that of its module of this name.
pub fn targets(published: &Published, module: Option<&str>) -> Vec<Target> {
    let modules = module
        .into_iter()
        .flat_map(|module| published.devices.iter().map(move |d| Target::module(d.as_str(), module)));
    published.devices.iter().map(Target::from).chain(modules).collect()
}

/// Whether a twin's epoch can be the site's own at some other time. One that cannot is neither obeyed nor overwritten.
pub(super) fn plausible(published: &Published, epoch: u64) -> bool {
    epoch <= published.epoch.saturating_add(FLOOR_AHEAD)
}

/// The twins that do not show what they should, of those that can be written.
pub(super) fn wrong(published: &Published, targets: &[Target], known: &BTreeMap<Target, Known>) -> usize {
    targets.iter().filter(|target| differs(published, target, known.get(target)).is_some()).count()
}

/// The flag that has to be written, with the etag and what stands there now.
fn differs<'a>(
    published: &Published,
    target: &Target,
    known: Option<&'a Known>,
) -> Option<(Flag, &'a str, &'a Seen)> {
    let Some(Known::Twin { etag, seen, .. }) = known else { return None };
    let flag = Flag::wanted_on(published, &target.device);
    let right = seen.flag.as_ref() == Some(&flag) || !plausible(published, seen.epoch);
    (!right).then_some((flag, etag.as_str(), seen))
}

/// Decides the next step for `targets`.
pub fn plan(published: &Published, targets: &[Target], known: &BTreeMap<Target, Known>) -> Step {
    let unread = |target: &&Target| matches!(known.get(*target), None | Some(Known::Unread));
    if let Some(unread) = targets.iter().find(unread) {
        return Step::Read(unread.clone());
    }
    let epoch_of = |target: &Target| match known.get(target) {
        Some(Known::Twin { seen, .. }) => seen.epoch,
        _ => 0,
    };
    let ahead: Vec<_> = targets
        .iter()
        .map(|target| (target.clone(), epoch_of(target)))
        .filter(|(_, epoch)| *epoch > published.epoch && plausible(published, *epoch))
        .collect();
    if !ahead.is_empty() {
        return Step::Ahead(ahead);
    }
    if published.epoch == 0 && published.owner.is_none() {
        // Nobody has ever owned: there is nothing to tell.
        return Step::Done;
    }
    let urgency = |flag: &Flag, seen: &Seen| match (seen.active, flag.active) {
        (true, false) => 0,
        (_, true) => 1,
        (false, false) => 2,
    };
    targets
        .iter()
        .filter_map(|target| differs(published, target, known.get(target)).map(|found| (target, found)))
        .min_by_key(|(_, (flag, _, seen))| urgency(flag, seen))
        .map_or(Step::Done, |(target, (flag, etag, _))| Step::Write {
            target: target.clone(),
            etag: etag.to_owned(),
            flag,
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{plan as plan_all, *};
    use crate::id::{DeviceId, SiteId};

    fn plan(published: &Published, known: &BTreeMap<Target, Known>) -> Step {
        plan_all(published, &targets(published, None), known)
    }

    fn name(number: usize) -> DeviceId {
        DeviceId::new(format!("edge-{number}")).expect("a name")
    }

    fn of(number: usize) -> Target {
        Target::from(&name(number))
    }

    /// The site's history: the owner of each epoch is fixed, as the record guarantees.
    fn record(history: &[Option<usize>], at: usize, devices: usize) -> Published {
        Published {
            site: SiteId::new("s").expect("a name"),
            devices: (0..devices).map(name).collect(),
            owner: history[at].filter(|owner| *owner < devices).map(name),
            epoch: at as u64 + 1,
            since_unix_ms: at as u64,
            reason: format!("change {at}"),
        }
    }

    /// Twins with etags that are version numbers, as the hub would keep them.
    #[derive(Debug, Clone)]
    struct Twins(BTreeMap<Target, (u64, Seen)>);

    impl Twins {
        fn new(devices: usize) -> Twins {
            Twins((0..devices).map(|d| (of(d), (0, Seen::default()))).collect())
        }

        fn actives(&self) -> usize {
            self.0.values().filter(|(_, seen)| seen.active).count()
        }

        /// Does one step for a mirror; `false` when it has nothing left to do.
        fn step(&mut self, published: &Published, known: &mut BTreeMap<Target, Known>) -> bool {
            match plan(published, known) {
                Step::Read(target) => {
                    let (version, seen) = self.0[&target].clone();
                    known.insert(target, Known::Twin { etag: version.to_string(), seen, disabled: false });
                    true
                }
                Step::Write { target, flag, etag } => {
                    let slot = self.0.get_mut(&target).expect("a device of the site");
                    if slot.0.to_string() != etag {
                        known.insert(target, Known::Unread);
                        return true;
                    }
                    assert!(flag.epoch >= slot.1.epoch, "an epoch went back");
                    assert_ne!(slot.1.flag.as_ref(), Some(&flag), "an equal flag was written");
                    *slot = (slot.0 + 1, Seen::of(flag));
                    let (etag, seen) = (slot.0.to_string(), slot.1.clone());
                    known.insert(target, Known::Twin { etag, seen, disabled: false });
                    true
                }
                Step::Ahead(_) | Step::Done => false,
            }
        }

        fn show(&self, published: &Published) -> bool {
            self.0
                .iter()
                .all(|(target, (_, seen))| seen.flag == Some(Flag::wanted_on(published, &target.device)))
        }
    }

    fn history() -> impl Strategy<Value = Vec<Option<usize>>> {
        proptest::collection::vec(proptest::option::weighted(0.85, 0..5_usize), 1..8)
    }

    proptest! {
        #[test]
        fn the_old_flag_is_cleared_before_the_new_one_is_set(history in history(), devices in 1..5_usize, pace in proptest::collection::vec(1..6_usize, 8)) {
            let (mut twins, mut known) = (Twins::new(devices), BTreeMap::new());
            for (at, pace) in pace.iter().enumerate().take(history.len()) {
                let published = record(&history, at, devices);
                // Often the record moves on before the mirror is done.
                for _ in 0..*pace {
                    twins.step(&published, &mut known);
                    prop_assert!(twins.actives() <= 1, "two active flags: {twins:?}");
                }
            }
            let last = record(&history, history.len() - 1, devices);
            let mut steps = 0;
            while twins.step(&last, &mut known) {
                prop_assert!(twins.actives() <= 1, "two active flags: {twins:?}");
                steps += 1;
                prop_assert!(steps <= 2 * devices, "does not come to an end");
            }
            prop_assert!(twins.show(&last));
        }

        #[test]
        fn whatever_two_mirrors_do_no_epoch_goes_back_and_the_newest_wins(
            history in history(),
            devices in 1..5_usize,
            turns in proptest::collection::vec((any::<bool>(), 0..8_usize, any::<bool>()), 0..80),
        ) {
            let mut twins = Twins::new(devices);
            let mut known = [BTreeMap::new(), BTreeMap::new()];
            let mut at = [0, 0];
            for (who, record_at, forgets) in turns {
                let who = usize::from(who);
                // Each mirror's view only moves forward, at its own pace; one may be far behind for ever.
                at[who] = at[who].max(record_at.min(history.len() - 1));
                if forgets {
                    known[who].clear();
                }
                // `step` asserts that no epoch goes back and no equal flag is written.
                twins.step(&record(&history, at[who], devices), &mut known[who]);
            }
            let last = record(&history, history.len() - 1, devices);
            for _ in 0..4 * devices {
                twins.step(&last, &mut known[0]);
            }
            // As the slow timer does: read again, compare again.
            known[0].clear();
            for _ in 0..4 * devices {
                twins.step(&last, &mut known[0]);
            }
            prop_assert!(twins.show(&last));
        }
    }

    #[test]
    fn a_workloads_module_follows_its_device_in_the_same_order() {
        let published = record(&[Some(1), Some(0)], 1, 2);
        let old = record(&[Some(1), Some(0)], 0, 2);
        let all = targets(&published, Some("app"));
        assert_eq!(all.len(), 4);
        let twin = |target: &Target| {
            let seen = Seen::of(Flag::wanted_on(&old, &target.device));
            (target.clone(), Known::Twin { etag: "e".into(), seen, disabled: false })
        };
        let mut known: BTreeMap<Target, Known> = all.iter().map(twin).collect();
        let mut order = Vec::new();
        while let Step::Write { target, flag, .. } = plan_all(&published, &all, &known) {
            order.push((target.to_string(), flag.active));
            let seen = Seen::of(flag);
            known.insert(target, Known::Twin { etag: "f".into(), seen, disabled: false });
        }
        let text = |(name, active): &(&str, bool)| ((*name).to_owned(), *active);
        let expected = [("edge-1", false), ("edge-1/app", false), ("edge-0", true), ("edge-0/app", true)];
        assert_eq!(order, expected.iter().map(text).collect::<Vec<_>>());
    }

    #[test]
    fn a_missing_or_refused_device_holds_up_nobody() {
        let published = record(&[Some(2)], 0, 3);
        let twin = Known::Twin { etag: "e".into(), seen: Seen::default(), disabled: false };
        let known =
            BTreeMap::from([(of(0), Known::Missing), (of(1), Known::Refused("full".into())), (of(2), twin)]);
        assert!(matches!(plan(&published, &known), Step::Write { target, .. } if target == of(2)));
    }

    #[test]
    fn one_twin_ahead_silences_the_mirror() {
        let published = record(&[Some(0)], 0, 2);
        let twin = |epoch| Known::Twin {
            etag: "e".into(),
            seen: Seen { epoch, ..Seen::default() },
            disabled: false,
        };
        let known = BTreeMap::from([(of(0), twin(0)), (of(1), twin(2))]);
        assert_eq!(plan(&published, &known), Step::Ahead(vec![(of(1), 2)]));
        // One that no site of this history can have written silences nobody, and is left alone.
        let known = BTreeMap::from([(of(0), twin(0)), (of(1), twin(FLOOR_AHEAD + 2))]);
        assert!(matches!(plan(&published, &known), Step::Write { target, .. } if target == of(0)));
        let flag = Flag::wanted(&published, &name(0));
        let right = Known::Twin { etag: "f".into(), seen: Seen::of(flag), disabled: false };
        let known = BTreeMap::from([(of(0), right), (of(1), twin(FLOOR_AHEAD + 2))]);
        assert_eq!(plan(&published, &known), Step::Done);
    }

    #[test]
    fn before_the_first_ownership_nothing_is_told() {
        let published = Published { epoch: 0, owner: None, ..record(&[None], 0, 1) };
        let known = BTreeMap::from([(
            of(0),
            Known::Twin { etag: "e".into(), seen: Seen::default(), disabled: false },
        )]);
        assert_eq!(plan(&published, &known), Step::Done);
    }
}
