//! What the twins of a site say together: a pure function of what was read.
//!
//! The rule for the cloud is one: trust the highest epoch (contract section 5). Everything else is a remark. A twin is as old as its
//! last write, so a site that cannot reach the hub goes on showing its last word; that is "stale", not "no owner".

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{condition::Condition, hub::reported::Reported};

/// A certificate that ends within this is worth a remark.
const CERTIFICATE_SOON_MS: u64 = 30 * 86_400_000;

/// What one device's twins say.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Device {
    /// The flag in the device's own twin.
    pub flag: Option<Shown>,
    /// What its sidecar says of itself in its module twin, and when the hub was last told.
    pub reported: Option<(Reported, Option<u64>)>,
    /// The name of its sidecar's module, once known.
    pub module: Option<String>,
    /// Whether the hub has disabled the device.
    pub disabled: bool,
    /// Whether the hub, asked for the device itself, does not know it.
    pub gone: bool,
}

/// A flag as far as it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    /// Whether this device owns.
    pub active: bool,
    /// Who owns; empty while nobody does.
    pub leader: String,
    /// Under which epoch.
    pub epoch: u64,
    /// Since when, in milliseconds since 1970.
    pub since_unix_ms: Option<u64>,
}

/// What is wrong or worth knowing. The names are what people script against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Remark {
    /// Two devices say that they own under the newest epoch.
    TwoOwners,
    /// Nobody owns under the newest epoch.
    NoOwner,
    /// One device's twins alone show the newest epoch, or a sidecar says that a twin shows one that its site has not reached.
    Ahead,
    /// No sidecar has told the hub anything for longer than `--stale`.
    Stale,
    /// Some device's twins show an older epoch than the newest.
    Behind,
    /// The hub has disabled a device.
    Disabled,
    /// A device that another one names as a member or as the owner has no twin that shows anything, or the hub does not know it.
    Missing,
    /// The sidecars of the site are of different builds.
    Drifted,
    /// Automatic changes are paused.
    Paused,
    /// A device is drained.
    Drained,
    /// One more loss would leave the site without a majority.
    NoSpare,
    /// A certificate ends within 30 days, or has ended.
    Certificate,
    /// Other conditions hold on a device.
    Conditions,
}

impl Remark {
    /// The name, as in the JSON form.
    pub(super) fn name(self) -> &'static str {
        match self {
            Remark::TwoOwners => "two-owners",
            Remark::NoOwner => "no-owner",
            Remark::Ahead => "ahead",
            Remark::Stale => "stale",
            Remark::Behind => "behind",
            Remark::Disabled => "disabled",
            Remark::Missing => "missing",
            Remark::Drifted => "drifted",
            Remark::Paused => "paused",
            Remark::Drained => "drained",
            Remark::NoSpare => "no-spare",
            Remark::Certificate => "certificate",
            Remark::Conditions => "conditions",
        }
    }

    /// Whether it is not known which one device owns.
    pub(super) fn ownerless(self) -> bool {
        matches!(self, Remark::TwoOwners | Remark::NoOwner)
    }

    /// Whether the answer to "are all sites owned, as far as their twins can be trusted?" is no.
    pub(super) fn alarming(self) -> bool {
        self.ownerless() || self == Remark::Ahead
    }

    /// Whether the query's index may only be behind, so that reading the twins themselves is worth it.
    pub(super) fn may_be_lag(self) -> bool {
        matches!(self, Remark::TwoOwners | Remark::NoOwner | Remark::Ahead | Remark::Behind | Remark::Stale)
    }
}

/// One site, judged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Site {
    /// The site.
    pub site: String,
    /// Who owns under the newest epoch.
    pub owner: Option<String>,
    /// The newest epoch that any twin of the site shows.
    pub epoch: u64,
    /// Since when, in milliseconds since 1970, by the owner's wall clock.
    pub since_unix_ms: Option<u64>,
    /// When the hub last heard a sidecar of the site, in milliseconds since 1970; `null` where only device twins are mirrored.
    pub heard_unix_ms: Option<u64>,
    /// The devices whose twins show this site.
    pub devices: Vec<String>,
    /// The builds of their sidecars.
    pub builds: Vec<String>,
    /// When the first certificate ends, in milliseconds since 1970.
    pub certificate_unix_ms: Option<u64>,
    /// Why automatic changes are paused; `null` while they are not.
    pub paused: Option<String>,
    /// What is wrong or worth knowing, worst first.
    pub remarks: Vec<Remark>,
    /// The same in words.
    pub details: Vec<String>,
}

/// Judges one site at `now_ms`; who was silent for longer than `stale_ms` is stale.
pub(super) fn judge(site: &str, devices: &BTreeMap<String, Device>, now_ms: u64, stale_ms: u64) -> Site {
    let shown: Vec<(&String, Shown)> =
        devices.iter().flat_map(|(name, d)| d.shown().map(move |s| (name, s))).collect();
    let epoch = shown.iter().map(|(_, s)| s.epoch).max().unwrap_or(0);
    let newest = || shown.iter().filter(|(_, s)| s.epoch == epoch);
    let mut remarks = BTreeMap::new();
    let mut remark = |remark: Remark, detail: String| {
        remarks.entry(remark).or_insert(detail);
    };

    let named: BTreeSet<&str> = newest().map(|(_, s)| s.leader.as_str()).filter(|l| !l.is_empty()).collect();
    let active: BTreeSet<&str> = newest().filter(|(_, s)| s.active).map(|(name, _)| name.as_str()).collect();
    let owners: BTreeSet<&str> = active.union(&named).copied().collect();
    if owners.len() > 1 {
        let owners = owners.iter().copied().collect::<Vec<_>>().join(" and ");
        remark(Remark::TwoOwners, format!("{owners} are both shown as the owner under epoch {epoch}"));
    } else if active.is_empty() {
        let told = match named.first() {
            Some(leader) => format!("{leader} is named under epoch {epoch}, and its own twins do not say so"),
            None => format!("nobody is shown as the owner under epoch {epoch}"),
        };
        remark(Remark::NoOwner, told);
    }
    if let Some(why) = ahead(devices, &shown, epoch) {
        remark(Remark::Ahead, why);
    }
    let behind: BTreeSet<&str> =
        shown.iter().filter(|(_, s)| s.epoch < epoch).map(|(name, _)| name.as_str()).collect();
    if !behind.is_empty() {
        let detail = |s: &Shown| if s.active { ", and as owner" } else { "" };
        let list = shown.iter().filter(|(_, s)| s.epoch < epoch);
        let list: BTreeSet<String> =
            list.map(|(name, s)| format!("{name} shows epoch {}{}", s.epoch, detail(s))).collect();
        remark(Remark::Behind, list.into_iter().collect::<Vec<_>>().join("; "));
    }

    let reported =
        || devices.iter().filter_map(|(name, d)| d.reported.as_ref().map(|(r, at)| (name, r, *at)));
    let heard = reported().filter_map(|(_, _, at)| at).max();
    if let Some(silent) = heard.map(|at| now_ms.saturating_sub(at)).filter(|silent| *silent > stale_ms) {
        remark(Remark::Stale, format!("no word for {}", super::super::when::span(silent)));
    }
    let off: Vec<&str> = devices.iter().filter(|(_, d)| d.disabled).map(|(name, _)| name.as_str()).collect();
    if !off.is_empty() {
        remark(Remark::Disabled, off.join(", "));
    }
    let members: BTreeSet<&str> =
        reported().flat_map(|(_, r, _)| &r.members).map(|m| m.device.as_str()).collect();
    let there = |device: &str| devices.get(device).is_some_and(|d| !d.gone);
    let gone = devices.iter().filter(|(_, d)| d.gone).map(|(name, _)| name.as_str());
    let unseen = members.union(&named).copied().filter(|device| !there(device));
    let missing: Vec<&str> = unseen.chain(gone).collect::<BTreeSet<_>>().into_iter().collect();
    if !missing.is_empty() {
        remark(Remark::Missing, missing.join(", "));
    }
    let builds: BTreeSet<String> =
        reported().map(|(_, r, _)| r.build.clone()).filter(|b| !b.is_empty()).collect();
    if builds.len() > 1 {
        let list = reported().map(|(name, r, _)| format!("{name} {}", r.build));
        remark(Remark::Drifted, list.collect::<Vec<_>>().join(", "));
    }
    // What the site has agreed is best known to who is at the newest epoch.
    let knows = || reported().filter(|(_, r, _)| r.flag.epoch == epoch);
    let paused = knows().find_map(|(_, r, _)| r.paused.clone());
    if let Some(why) = &paused {
        remark(Remark::Paused, why.clone());
    }
    let drained: BTreeSet<&str> = knows().flat_map(|(_, r, _)| &r.drained).map(String::as_str).collect();
    if !drained.is_empty() {
        remark(Remark::Drained, drained.into_iter().collect::<Vec<_>>().join(", "));
    }
    if knows().any(|(name, r, _)| r.may_fail == 0 && active.contains(name.as_str())) {
        remark(Remark::NoSpare, "no device may fail".into());
    }
    let certificate = reported()
        .filter_map(|(_, r, _)| crate::hub::wall::from_rfc3339(r.certificate_expires.as_deref()?))
        .min();
    if let Some(left) =
        certificate.filter(|at| *at < now_ms + CERTIFICATE_SOON_MS).map(|at| at.checked_sub(now_ms))
    {
        let told = left.map_or("ended".into(), |left| format!("ends in {}", super::super::when::span(left)));
        remark(Remark::Certificate, format!("a certificate {told}"));
    }
    let conditions: BTreeSet<&str> =
        reported().flat_map(|(_, r, _)| &r.conditions).map(String::as_str).collect();
    if !conditions.is_empty() {
        remark(Remark::Conditions, conditions.into_iter().collect::<Vec<_>>().join(", "));
    }

    let owner = if owners.len() == 1 { active.first().map(|o| (*o).to_owned()) } else { None };
    let since = newest().filter_map(|(_, s)| s.since_unix_ms).max();
    Site {
        site: site.to_owned(),
        owner,
        epoch,
        since_unix_ms: since,
        heard_unix_ms: heard,
        devices: devices.iter().filter(|(_, d)| !d.gone).map(|(name, _)| name.clone()).collect(),
        builds: builds.into_iter().collect(),
        certificate_unix_ms: certificate,
        paused,
        details: remarks.iter().map(|(remark, detail)| format!("{}: {detail}", remark.name())).collect(),
        remarks: remarks.into_keys().collect(),
    }
}

/// Why the newest epoch is in doubt, if it is. One member writes all device twins, within moments: where one of them alone is ahead
/// of the others, and of its own sidecar's word, somebody else wrote it, or the mirror came no further.
fn ahead(devices: &BTreeMap<String, Device>, shown: &[(&String, Shown)], epoch: u64) -> Option<String> {
    let says = |r: &Reported| {
        let names = [Condition::TwinAhead, Condition::TwinImplausible].map(Condition::name);
        r.conditions.iter().any(|condition| names.contains(&condition.as_str()))
    };
    if let Some((name, _)) = devices.iter().find(|(_, d)| d.reported.as_ref().is_some_and(|(r, _)| says(r))) {
        return Some(format!("{name} says that a twin shows an epoch that its site has not reached"));
    }
    let newest: BTreeSet<&String> = shown.iter().filter(|(_, s)| s.epoch == epoch).map(|(n, _)| *n).collect();
    let (Some(alone), 1) = (newest.first(), newest.len()) else { return None };
    let device = devices.get(*alone)?;
    let flagged = device.flag.as_ref().is_some_and(|flag| flag.epoch == epoch);
    let confirmed = device.reported.as_ref().is_some_and(|(r, _)| r.has_flag() && r.flag.epoch == epoch);
    let others = devices.iter().filter(|(name, _)| name != alone);
    let below = others.filter_map(|(_, d)| d.flag.as_ref()).map(|flag| flag.epoch).max()?;
    (flagged && !confirmed)
        .then(|| format!("the twin of {alone} alone shows epoch {epoch}, no other one is above {below}"))
}

impl Device {
    fn shown(&self) -> impl Iterator<Item = Shown> {
        let own = self.reported.as_ref().filter(|(r, _)| r.has_flag()).map(|(r, _)| Shown {
            active: r.flag.active,
            leader: r.flag.leader.clone(),
            epoch: r.flag.epoch,
            since_unix_ms: crate::hub::wall::from_rfc3339(&r.flag.since),
        });
        self.flag.clone().into_iter().chain(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{Flag, reported::Member};

    const NOW: u64 = 1_800_000_000_000;

    fn flag(device: &str, leader: &str, epoch: u64) -> Option<Shown> {
        Some(Shown {
            active: device == leader,
            leader: leader.into(),
            epoch,
            since_unix_ms: Some(NOW - 5000),
        })
    }

    fn reported(device: &str, leader: &str, epoch: u64) -> Reported {
        Reported {
            doubtful: false,
            flag: Flag {
                active: device == leader,
                leader: leader.into(),
                epoch,
                site: "plant".into(),
                since: crate::hub::wall::rfc3339(NOW - 5000),
                reason: String::new(),
            },
            device: device.into(),
            role: "standby".into(),
            build: "0.1.0".into(),
            members: ["a", "b", "c"]
                .map(|d| Member {
                    device: d.into(),
                    role: "voter".into(),
                    build: String::new(),
                    reachable: true,
                })
                .into(),
            may_fail: 1,
            paused: None,
            drained: vec![],
            conditions: vec![],
            mirror: None,
            hub_lag_s: 0,
            certificate_expires: None,
            commands: Default::default(),
            reported: String::new(),
        }
    }

    fn site(leader: &str, epoch: u64) -> BTreeMap<String, Device> {
        let device = |d: &str| Device {
            flag: flag(d, leader, epoch),
            reported: Some((reported(d, leader, epoch), Some(NOW - 60_000))),
            ..Device::default()
        };
        ["a", "b", "c"].map(|d| (d.to_owned(), device(d))).into()
    }

    fn remarks(devices: &BTreeMap<String, Device>) -> Vec<Remark> {
        judge("plant", devices, NOW, 3_600_000).remarks
    }

    #[test]
    fn a_healthy_site_has_no_remarks() {
        let judged = judge("plant", &site("b", 7), NOW, 3_600_000);
        assert_eq!((judged.owner.as_deref(), judged.epoch, judged.remarks), (Some("b"), 7, vec![]));
        assert_eq!(judged.since_unix_ms, Some(NOW - 5000));
    }

    #[test]
    fn the_highest_epoch_is_trusted() {
        let mut devices = site("a", 7);
        for twin in ["b", "c"] {
            let device = devices.get_mut(twin).expect("is there");
            *device = Device {
                flag: flag(twin, "b", 8),
                reported: Some((reported(twin, "b", 8), Some(NOW))),
                ..Device::default()
            };
        }
        let judged = judge("plant", &devices, NOW, 3_600_000);
        assert_eq!((judged.owner.as_deref(), judged.epoch), (Some("b"), 8));
        assert_eq!(judged.remarks, [Remark::Behind]);
        assert_eq!(judged.details, ["behind: a shows epoch 7, and as owner"]);
    }

    #[test]
    fn two_owners_and_none() {
        let mut devices = site("a", 7);
        devices.get_mut("b").expect("is there").flag = flag("b", "b", 7);
        assert_eq!(remarks(&devices), [Remark::TwoOwners]);
        let mut devices = site("", 7);
        assert_eq!(remarks(&devices), [Remark::NoOwner]);
        devices.clear();
        assert_eq!(remarks(&devices), [Remark::NoOwner]);
        // Its own twins have not been told yet, or were deleted.
        let mut devices = site("a", 7);
        devices.remove("a");
        assert_eq!(remarks(&devices), [Remark::NoOwner, Remark::Missing]);
    }

    #[test]
    fn an_epoch_that_one_twin_alone_shows_is_a_finding() {
        let flags_only = |epochs: [u64; 3]| -> BTreeMap<String, Device> {
            let of = |(name, epoch): (&str, u64)| {
                let device = Device { flag: flag(name, "c", epoch), ..Device::default() };
                (name.to_owned(), device)
            };
            ["a", "b", "c"].into_iter().zip(epochs).map(of).collect()
        };
        let forged = judge("plant", &flags_only([17, 17, 999]), NOW, 3_600_000);
        assert_eq!(forged.remarks, [Remark::Ahead, Remark::Behind]);
        assert!(forged.details[0].contains("c alone shows epoch 999") && forged.details[0].contains("17"));
        assert!(Remark::Ahead.alarming() && Remark::Ahead.may_be_lag());
        // Half written, but by more than one hand's work: the last one follows.
        assert_eq!(remarks(&flags_only([17, 18, 18])), [Remark::Behind]);
        // A module that reached the hub before the others says itself what it reached.
        let mut devices = site("a", 7);
        let a = devices.get_mut("a").expect("is there");
        (a.flag, a.reported) = (flag("a", "a", 8), Some((reported("a", "a", 8), Some(NOW))));
        assert_eq!(remarks(&devices), [Remark::Behind]);
        a_sidecar_says_so();

        fn a_sidecar_says_so() {
            let mut devices = site("a", 7);
            let said = devices.get_mut("b").and_then(|b| b.reported.as_mut()).expect("is there");
            said.0.conditions = vec!["twin.ahead".into()];
            assert_eq!(remarks(&devices), [Remark::Ahead, Remark::Conditions]);
        }
    }

    #[test]
    fn whoever_is_named_and_not_there_is_missing() {
        // Device twins name the owner alone.
        let device = |name: &str| Device { flag: flag(name, "a", 7), ..Device::default() };
        let mut devices: BTreeMap<_, _> = ["b", "c"].map(|d| (d.to_owned(), device(d))).into();
        let judged = judge("plant", &devices, NOW, 3_600_000);
        assert_eq!(judged.remarks, [Remark::NoOwner, Remark::Missing]);
        assert_eq!(judged.details[1], "missing: a");
        // The hub itself says that it is not there.
        devices.insert("a".into(), device("a"));
        devices.insert("c".into(), Device { gone: true, ..Device::default() });
        let judged = judge("plant", &devices, NOW, 3_600_000);
        assert_eq!((judged.remarks, judged.devices), (vec![Remark::Missing], vec!["a".into(), "b".into()]));
    }

    #[test]
    fn a_sidecar_without_a_flag_yet_is_there_and_shows_no_epoch() {
        let mut devices = site("a", 7);
        let fresh = serde_json::json!({"device": "c", "build": "0.1.0", "members": [{"device": "a"}]});
        let fresh = Reported::read(&fresh).expect("is read");
        assert!(!fresh.has_flag());
        devices.insert("c".into(), Device { reported: Some((fresh, Some(NOW))), ..Device::default() });
        let judged = judge("plant", &devices, NOW, 3_600_000);
        assert_eq!((judged.remarks, judged.devices.len()), (vec![], 3));
    }

    #[test]
    fn every_other_remark() {
        let with = |change: &dyn Fn(&mut Reported)| {
            let mut devices = site("a", 7);
            change(&mut devices.get_mut("a").expect("is there").reported.as_mut().expect("has one").0);
            remarks(&devices)
        };
        assert_eq!(with(&|r| r.build = "0.2.0".into()), [Remark::Drifted]);
        assert_eq!(with(&|r| r.paused = Some("by ann: holiday".into())), [Remark::Paused]);
        assert_eq!(with(&|r| r.drained = vec!["b".into()]), [Remark::Drained]);
        assert_eq!(with(&|r| r.may_fail = 0), [Remark::NoSpare]);
        assert_eq!(with(&|r| r.conditions = vec!["disk.full".into()]), [Remark::Conditions]);
        assert_eq!(
            with(&|r| r.certificate_expires = Some(crate::hub::wall::rfc3339(NOW + 86_400_000))),
            [Remark::Certificate]
        );
        assert_eq!(
            with(&|r| r.certificate_expires = Some(crate::hub::wall::rfc3339(NOW + 90 * 86_400_000))),
            []
        );
        let mut devices = site("a", 7);
        devices.get_mut("b").expect("is there").disabled = true;
        assert_eq!(remarks(&devices), [Remark::Disabled]);
        let mut devices = site("a", 7);
        for device in devices.values_mut() {
            device.reported.as_mut().expect("has one").1 = Some(NOW - 2 * 3_600_000);
        }
        assert_eq!(remarks(&devices), [Remark::Stale]);
    }
}
