//! What the twins of a site say together: a pure function of what was read.
//!
//! The rule for the cloud is one: trust the highest epoch (contract section 5). Everything else is a remark. A twin is as old as its
//! last write, so a site that cannot reach the hub goes on showing its last word; that is "stale", not "no owner".

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::hub::reported::Reported;

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
    /// No sidecar has told the hub anything for longer than `--stale`.
    Stale,
    /// Some device's twins show an older epoch than the newest.
    Behind,
    /// The hub has disabled a device.
    Disabled,
    /// A device that another one names as a member has no twin that shows anything.
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

    /// Whether the answer to "are all sites owned?" is no.
    pub(super) fn alarming(self) -> bool {
        matches!(self, Remark::TwoOwners | Remark::NoOwner)
    }

    /// Whether the query's index may only be behind, so that reading the twins themselves is worth it.
    pub(super) fn may_be_lag(self) -> bool {
        matches!(self, Remark::TwoOwners | Remark::NoOwner | Remark::Behind | Remark::Stale)
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
    let missing: Vec<&str> = members.iter().copied().filter(|m| !devices.contains_key(*m)).collect();
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
        devices: devices.keys().cloned().collect(),
        builds: builds.into_iter().collect(),
        certificate_unix_ms: certificate,
        paused,
        details: remarks.iter().map(|(remark, detail)| format!("{}: {detail}", remark.name())).collect(),
        remarks: remarks.into_keys().collect(),
    }
}

impl Device {
    fn shown(&self) -> impl Iterator<Item = Shown> {
        let own = self.reported.as_ref().map(|(r, _)| Shown {
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
