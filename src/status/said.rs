//! What the devices of a site complain of, put together on whichever of them is asked.
//!
//! Pure: the conditions of this device and the words of the others that are heard now give one list. Who is not heard has no words
//! here: what it said last may be over long since. Of another's conditions the names alone are known (`ownership/told.rs`); the
//! facts stand in that device's own status.

use std::cmp::Reverse;

use super::report;
use crate::{
    condition::{Condition, Raised, Severity},
    ownership::told::{Told, Work},
};

/// All conditions that hold on the site, the most urgent first, as `me` raises and hears them. What is about the site as a whole,
/// and raised here, is not said again by the others.
pub fn conditions(me: &str, raised: &[Raised], others: &[(&str, Told)]) -> Vec<report::Condition> {
    let own = raised.iter().map(|raised| {
        let shown = report::Condition { device: me.to_owned(), ..raised.into() };
        (Some(raised.name), shown)
    });
    let is_said_here = |name: Option<Condition>| {
        name.is_some_and(|name| name.is_of_the_site() && raised.iter().any(|raised| raised.name == name))
    };
    let theirs = others.iter().flat_map(|(device, told)| {
        let named = told.conditions.iter().map(|name| (Condition::named(name), name));
        named
            .filter(|(known, _)| !is_said_here(*known))
            .map(|(known, name)| (known, of_another(device, known, name)))
    });
    let mut all: Vec<_> = own.chain(theirs).collect();
    // Only what is urgent is told, so a name that only a later version knows is a warning at least.
    let urgency = |known: Option<Condition>| Reverse(known.map_or(Severity::Warning, Condition::severity));
    all.sort_by(|(a, x), (b, y)| {
        let place = |known: Option<Condition>, shown: &report::Condition| {
            (urgency(known), known.is_none(), known, shown.device != me)
        };
        place(*a, x).cmp(&place(*b, y)).then_with(|| (&x.device, &x.detail).cmp(&(&y.device, &y.detail)))
    });
    all.dedup();
    all.into_iter().map(|(_, shown)| shown).collect()
}

fn of_another(device: &str, known: Option<Condition>, name: &str) -> report::Condition {
    let detail = format!("the status of {device} has the details");
    match known {
        Some(condition) => {
            report::Condition { device: device.to_owned(), ..(&Raised::new(condition, detail)).into() }
        }
        None => report::Condition {
            name: name.to_owned(),
            severity: Severity::Warning.name().to_owned(),
            detail,
            meaning: "A condition that this version does not know.".into(),
            advice: format!("Ask {device} what to do: its `quorate status` says so."),
            device: device.to_owned(),
        },
    }
}

/// Why the workload does not do its work on the owner although that owns; `None` if it does, as far as is known here.
pub fn workload_wrong(owner: &str, work: Option<Work>, conditions: &[report::Condition]) -> Option<String> {
    let state = work.filter(|work| *work != Work::Running).map(Work::name);
    let names = conditions.iter().filter(|c| {
        // One that only a later version knows may mean anything.
        c.device == owner && c.name.starts_with("workload.") && Condition::named(&c.name).is_some()
    });
    let mut parts: Vec<&str> = state.into_iter().chain(names.map(|c| c.name.as_str())).collect();
    parts.dedup();
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(names: &[&str]) -> Told {
        Told { work: None, conditions: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    fn named(all: &[report::Condition]) -> Vec<String> {
        all.iter().map(|c| format!("{} {} {}", c.severity, c.name, c.device)).collect()
    }

    #[test]
    fn what_others_complain_of_is_shown_beside_ones_own_the_most_urgent_first() {
        let raised = [Raised::new(Condition::NoSpare, "not heard: edge-4")];
        let others = [
            ("edge-2", told(&["workload.crashing", "no.spare", "hub.unreachable"])),
            ("edge-3", told(&["hub.unreachable", "quorum.lost", "rain.tomorrow"])),
        ];
        let all = conditions("edge-1", &raised, &others);
        assert_eq!(
            named(&all),
            [
                "critical quorum.lost edge-3",
                "critical workload.crashing edge-2",
                "warning no.spare edge-1",
                "warning hub.unreachable edge-2",
                "warning hub.unreachable edge-3",
                "warning rain.tomorrow edge-3",
            ],
            "what is of the site is said once, what is of a device by each, and what a later version says as it is"
        );
        let [quorum, crashing, spare, .., rain] = all.as_slice() else { panic!("six") };
        assert_eq!(spare.detail, "not heard: edge-4");
        assert!([quorum, crashing, rain].iter().all(|c| !c.advice.is_empty() && !c.meaning.is_empty()));
        assert!(crashing.detail.contains("status of edge-2"), "{}", crashing.detail);
    }

    #[test]
    fn ones_own_come_before_the_same_of_others_and_each_once() {
        let own = |detail: &str| Raised::new(Condition::PlantUnseen, detail);
        let raised = [own("plc-2: refused"), own("plc-1: refused"), own("plc-1: refused")];
        let all = conditions("edge-3", &raised, &[("edge-1", told(&["plant.unseen"]))]);
        let devices: Vec<_> = all.iter().map(|c| (c.device.as_str(), c.detail.as_str())).collect();
        assert_eq!(devices[..2], [("edge-3", "plc-1: refused"), ("edge-3", "plc-2: refused")]);
        assert_eq!((devices.len(), devices[2].0), (3, "edge-1"));
        assert!(conditions("edge-1", &[], &[]).is_empty());
    }

    #[test]
    fn the_owners_workload_is_wrong_by_its_state_or_by_what_its_device_complains_of() {
        let all = conditions(
            "edge-1",
            &[Raised::new(Condition::WorkloadUnhealthy, "it lacks the program")],
            &[("edge-2", told(&["workload.crashing", "hub.unreachable"]))],
        );
        let wrong = |owner, work| workload_wrong(owner, work, &all);
        assert_eq!(
            wrong("edge-2", Some(Work::BackingOff)).as_deref(),
            Some("backing off, workload.crashing")
        );
        // It runs for a moment between two ends.
        assert_eq!(wrong("edge-2", Some(Work::Running)).as_deref(), Some("workload.crashing"));
        assert_eq!(wrong("edge-3", Some(Work::NotReady)).as_deref(), Some("not ready"));
        assert_eq!(wrong("edge-3", Some(Work::Running)), None, "a standby's trouble is not the owner's");
        assert_eq!(wrong("edge-3", None), None, "an owner of an earlier version says nothing of it");
    }
}
