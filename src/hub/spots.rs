//! Everything of a twin that says who owns: the flag in one or both parts, and the bare boolean for a workload that reads one.
//!
//! All of it is written by one request, and it is right only if all of it is. Nothing here decides whether to write.

use serde_json::Value;

use super::{
    Flag, FlagPath, Settings,
    flag::{Place, Seen},
    twin::{Change, Twin, merge},
};

/// Where the flag stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spots {
    path: FlagPath,
    place: Place,
    plain: Option<FlagPath>,
}

impl Spots {
    /// As configured.
    pub fn of(settings: &Settings) -> Spots {
        Spots { path: settings.flag.clone(), place: settings.place, plain: settings.plain.clone() }
    }

    /// What a twin shows. The whole flag only if every spot shows the same; the highest epoch of all, and `active` if any
    /// says so.
    pub fn read(&self, twin: &Twin) -> Seen {
        let mut seen = match self.place {
            Place::Desired => self.path.read(&twin.desired.values),
            Place::Tags => self.path.read(&twin.tags),
            Place::Both => {
                let (desired, tags) = (self.path.read(&twin.desired.values), self.path.read(&twin.tags));
                Seen {
                    flag: desired.flag.filter(|flag| tags.flag.as_ref() == Some(flag)),
                    epoch: desired.epoch.max(tags.epoch),
                    active: desired.active || tags.active,
                    foreign: desired.foreign || tags.foreign,
                }
            }
        };
        if let Some(plain) = &self.plain {
            let says = plain.find(&twin.desired.values).and_then(Value::as_bool);
            seen.active |= says == Some(true);
            seen.flag = seen.flag.filter(|flag| says == Some(flag.active));
        }
        seen
    }

    /// The one change that writes `flag` to all spots of a twin.
    pub fn write(&self, flag: &Flag) -> Change {
        let flag_at = |wanted: bool| wanted.then(|| self.path.put(Value::Object(flag.to_properties())));
        let mut desired = flag_at(self.place != Place::Tags);
        if let Some(plain) = &self.plain {
            let bare = plain.put(Value::Bool(flag.active));
            desired = Some(match desired {
                Some(mut both) => {
                    merge(&mut both, &bare);
                    both
                }
                None => bare,
            });
        }
        Change { tags: flag_at(self.place != Place::Desired), desired }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::hub::twin::Manner;

    fn flag(active: bool, epoch: u64) -> Flag {
        Flag {
            active,
            leader: "edge-2".into(),
            epoch,
            site: "plant-7".into(),
            since: String::new(),
            reason: String::new(),
        }
    }

    fn spots(place: Place, plain: Option<&str>) -> Spots {
        let plain = plain.map(|path| FlagPath::try_from(path.to_owned()).expect("a path"));
        Spots { path: FlagPath::default(), place, plain }
    }

    fn twin() -> Twin {
        Twin::new("edge-1", None, "e".into(), "2026-01-01T00:00:00Z")
    }

    #[test]
    fn one_request_writes_every_spot() {
        let spots = spots(Place::Both, Some("app.enabled"));
        let change = spots.write(&flag(true, 3)).to_json();
        assert_eq!(change["tags"]["quorate"]["epoch"], json!(3));
        assert_eq!(change["properties"]["desired"]["quorate"]["epoch"], json!(3));
        assert_eq!(change["properties"]["desired"]["app"], json!({"enabled": true}));
    }

    #[test]
    fn one_wrong_spot_makes_it_wrong_and_the_worst_counts() {
        let spots = spots(Place::Both, Some("on"));
        let mut twin = twin();
        let at = "2026-01-01T00:00:00Z";
        twin.change(&spots.write(&flag(false, 3)), Manner::Merge, at).expect("fits");
        assert_eq!(spots.read(&twin).flag, Some(flag(false, 3)));
        for (spoil, epoch, active) in [
            (json!({"tags": {"quorate": {"epoch": 9}}}), 9, false),
            (json!({"tags": {"quorate": null}}), 3, false),
            (json!({"properties": {"desired": {"on": true}}}), 3, true),
            (json!({"properties": {"desired": {"on": "no"}}}), 3, false),
        ] {
            let mut twin = twin.clone();
            twin.change(&Change::from_json(&spoil).expect("a change"), Manner::Merge, at).expect("fits");
            let seen = spots.read(&twin);
            assert_eq!((seen.flag, seen.epoch, seen.active), (None, epoch, active), "{spoil}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(active: bool, epoch in 0_u64..1 << 40, place in 0..3, plain: bool) {
            let place = [Place::Desired, Place::Tags, Place::Both][usize::try_from(place).expect("small")];
            let spots = spots(place, plain.then_some("app.enabled"));
            let mut twin = twin();
            let change = spots.write(&flag(active, epoch));
            twin.change(&change, Manner::Merge, "2026-01-01T00:00:00Z").expect("fits");
            let seen = spots.read(&twin);
            prop_assert_eq!((seen.epoch, seen.active, seen.foreign), (epoch, active, false));
            prop_assert_eq!(seen.flag, Some(flag(active, epoch)));
        }
    }
}
