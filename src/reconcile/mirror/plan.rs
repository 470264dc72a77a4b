//! What the mirror does next: a pure function of what the site has agreed and what is known of the twins.
//!
//! Four rules, in this order. Every twin is read before any is written. While a twin shows a higher epoch than the site
//! has reached, nothing is written at all: whoever is behind must not speak. The old owner's flag is cleared before the
//! new owner's is set, and the bystanders' come last. What is equal is not written.

use std::collections::BTreeMap;

use crate::{
    hub::{Flag, Published, flag::Seen},
    id::DeviceId,
};

/// What is known of one device's twin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Nothing, or nothing that is still certain: it has to be read.
    Unread,
    /// The hub does not know the device. There is no flag to clear and none to set.
    Missing,
    /// The hub refuses requests for this device alone. The others do not wait for it.
    Refused(String),
    /// The twin as it was read, or as it was after our last write.
    Twin {
        /// The etag that a write must name.
        etag: String,
        /// What stands where the flag belongs.
        seen: Seen,
    },
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read this device's twin.
    Read(DeviceId),
    /// Write this flag, if the twin still has this etag.
    Write {
        /// Whose twin.
        device: DeviceId,
        /// The flag.
        flag: Flag,
        /// The etag of the twin that was compared.
        etag: String,
    },
    /// These twins show a higher epoch than the site has reached. Write nothing.
    Ahead(Vec<(DeviceId, u64)>),
    /// Every twin that can be written shows what it should.
    Done,
}

/// Decides the next step.
pub fn plan(published: &Published, known: &BTreeMap<DeviceId, Known>) -> Step {
    let of = |device: &DeviceId| known.get(device).unwrap_or(&Known::Unread);
    if let Some(unread) = published.devices.iter().find(|device| *of(device) == Known::Unread) {
        return Step::Read(unread.clone());
    }
    let twins = || {
        published.devices.iter().filter_map(|device| match of(device) {
            Known::Twin { etag, seen } => Some((device, etag, seen)),
            Known::Unread | Known::Missing | Known::Refused(_) => None,
        })
    };
    let ahead: Vec<_> = twins()
        .filter(|(_, _, seen)| seen.epoch > published.epoch)
        .map(|(device, _, seen)| (device.clone(), seen.epoch))
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
    twins()
        .map(|(device, etag, seen)| (device, etag, seen, Flag::wanted(published, device)))
        .filter(|(_, _, seen, flag)| seen.flag.as_ref() != Some(flag))
        .min_by_key(|(_, _, seen, flag)| urgency(flag, seen))
        .map_or(Step::Done, |(device, etag, _, flag)| Step::Write {
            device: device.clone(),
            etag: etag.clone(),
            flag,
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::SiteId;

    fn name(number: usize) -> DeviceId {
        DeviceId::new(format!("edge-{number}")).expect("a name")
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
    struct Twins(BTreeMap<DeviceId, (u64, Seen)>);

    impl Twins {
        fn new(devices: usize) -> Twins {
            Twins((0..devices).map(|d| (name(d), (0, Seen::default()))).collect())
        }

        fn actives(&self) -> usize {
            self.0.values().filter(|(_, seen)| seen.active).count()
        }

        /// Does one step for a mirror; `false` when it has nothing left to do.
        fn step(&mut self, published: &Published, known: &mut BTreeMap<DeviceId, Known>) -> bool {
            match plan(published, known) {
                Step::Read(device) => {
                    let (version, seen) = self.0[&device].clone();
                    known.insert(device, Known::Twin { etag: version.to_string(), seen });
                    true
                }
                Step::Write { device, flag, etag } => {
                    let slot = self.0.get_mut(&device).expect("a device of the site");
                    if slot.0.to_string() != etag {
                        known.insert(device, Known::Unread);
                        return true;
                    }
                    assert!(flag.epoch >= slot.1.epoch, "an epoch went back");
                    assert_ne!(slot.1.flag.as_ref(), Some(&flag), "an equal flag was written");
                    let seen = Seen { epoch: flag.epoch, active: flag.active, flag: Some(flag) };
                    *slot = (slot.0 + 1, seen);
                    known.insert(device, Known::Twin { etag: slot.0.to_string(), seen: slot.1.clone() });
                    true
                }
                Step::Ahead(_) | Step::Done => false,
            }
        }

        fn show(&self, published: &Published) -> bool {
            self.0.iter().all(|(device, (_, seen))| seen.flag == Some(Flag::wanted(published, device)))
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
    fn a_missing_or_refused_device_holds_up_nobody() {
        let published = record(&[Some(2)], 0, 3);
        let twin = Known::Twin { etag: "e".into(), seen: Seen::default() };
        let known = BTreeMap::from([
            (name(0), Known::Missing),
            (name(1), Known::Refused("full".into())),
            (name(2), twin),
        ]);
        assert!(matches!(plan(&published, &known), Step::Write { device, .. } if device == name(2)));
    }

    #[test]
    fn one_twin_ahead_silences_the_mirror() {
        let published = record(&[Some(0)], 0, 2);
        let twin = |epoch| Known::Twin { etag: "e".into(), seen: Seen { epoch, ..Seen::default() } };
        let known = BTreeMap::from([(name(0), twin(0)), (name(1), twin(2))]);
        assert_eq!(plan(&published, &known), Step::Ahead(vec![(name(1), 2)]));
    }

    #[test]
    fn before_the_first_ownership_nothing_is_told() {
        let published = Published { epoch: 0, owner: None, ..record(&[None], 0, 1) };
        let known = BTreeMap::from([(name(0), Known::Twin { etag: "e".into(), seen: Seen::default() })]);
        assert_eq!(plan(&published, &known), Step::Done);
    }
}
