//! Everything a sidecar knows about its site, as one value that feeds all faces: `GET /v1/status`, the page, gRPC
//! `GetStatus`, `quorate status`, `quorate why` and the metrics.
//!
//! It is a snapshot to be shown. Nothing decides by it, and only `owner` says for how long it stays true. Names are
//! plain texts, and absent fields have defaults, so that a command line tool of another version can read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::condition::Raised;

/// The whole snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The site.
    pub site: String,
    /// The device of the sidecar that made this.
    pub device: String,
    /// The sidecar's version.
    pub version: String,
    /// This life of the sidecar.
    pub incarnation: String,
    /// Since the sidecar started, in milliseconds.
    pub uptime_ms: u64,
    /// Who owns now, as far as this sidecar can vouch for it.
    pub owner: Owner,
    /// The epoch of the newest ownership in the record, owned or not.
    pub epoch: u64,
    /// What this sidecar is in the Raft group.
    pub role: Role,
    /// How long this device's own lease still runs, in milliseconds; absent if it holds none.
    pub lease_left_ms: Option<u64>,
    /// Whether this sidecar hears from a majority, itself included.
    pub quorum: bool,
    /// How many more devices the site can lose before nobody may own.
    pub devices_may_fail: u32,
    /// What people and programs have ordered, and is in force.
    pub orders: Orders,
    /// All members, this device included.
    pub members: Vec<Member>,
    /// The workload on this device.
    pub workload: Workload,
    /// What is asked on this device to know how well off it is; empty if nothing is.
    pub probes: Vec<Probe>,
    /// The mirror.
    pub hub: Hub,
    /// What holds now that a person may have to act on, on this device or on another that is heard; the most urgent first.
    pub conditions: Vec<Condition>,
    /// This device's last decision; absent before the first.
    pub last_decision: Option<Decision>,
    /// The durations in force, in one sentence.
    pub timing: String,
    /// Within how long a lost owner is replaced by the timing in force, in milliseconds, where network and disks answer within a
    /// heartbeat.
    pub takeover_ms_max: u64,
    /// How well this device and its network keep up.
    pub vitals: Vitals,
    /// The last ownerships, newest first.
    pub history: Vec<Change>,
    /// Sidecars that were refused at the door.
    pub knocks: Vec<Knock>,
}

impl Report {
    /// Whether one of its conditions is raised by the device that made it. A sidecar of an earlier version names no device.
    pub fn is_raised_here(&self, condition: &Condition) -> bool {
        condition.device.is_empty() || condition.device == self.device
    }
}

/// What people and programs have ordered, and is in force until another order lifts it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Orders {
    /// Set while nobody takes over of its own accord.
    pub paused: Option<Ordered>,
    /// The devices that shall not own.
    pub drained: BTreeMap<String, Ordered>,
    /// The device that comes first where one is chosen.
    pub preferred: Option<String>,
    /// The least stretch of the timing, in hundredths of the configured one.
    pub stretch_percent_min: Option<u32>,
}

/// Who ordered something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ordered {
    /// Who asked.
    pub actor: String,
    /// Why; may be empty.
    pub reason: String,
    /// When, by the asking device's wall clock, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// When it ends by itself, in milliseconds since 1970, by the clock of whoever leads then; absent: it does not.
    pub until_unix_ms: Option<u64>,
}

/// Who owns now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Owner {
    /// Whether this sidecar can vouch for the rest.
    pub known: bool,
    /// The owner; absent if it is unknown, or if it is known that nobody owns.
    pub device: Option<String>,
    /// The fencing token.
    pub epoch: u64,
    /// How long this stays true, in milliseconds, counted from when the report was made.
    pub valid_for_ms: u64,
    /// Why, in one sentence.
    pub reason: String,
    /// What the owner observes of its workload: `stopped`, `starting`, `running`, `not ready`, `backing off` or `stopping`. Absent if
    /// it does not say, or has no workload of its own.
    pub workload: Option<String>,
    /// What is wrong with it there: that state unless it is `running`, and the names of the owner's conditions `workload.*`. Absent
    /// if nothing is, as far as is known here.
    pub workload_wrong: Option<String>,
}

/// A Raft role. It says nothing about ownership.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The group is not up yet on this device.
    #[default]
    Starting,
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
    /// A role that this version does not know.
    #[serde(other)]
    Unknown,
}

impl Role {
    /// The name as it stands in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Role::Starting => "starting",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Leader => "leader",
            Role::Unknown => "unknown",
        }
    }
}

/// One member as this sidecar sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    /// The device.
    pub device: String,
    /// Where it is dialled.
    pub address: String,
    /// `voter` or `witness`.
    pub role: String,
    /// Whether it answers now; true for this device itself.
    pub reachable: bool,
    /// Whether its vote counts now: it answers, and its store is the one that votes.
    pub votes: bool,
    /// Milliseconds since it was last heard; absent if never.
    pub last_heard_ms: Option<u64>,
    /// What it runs: its sidecar's version, `+`, and the fingerprint of its workload and configuration; empty if it never said.
    pub build: String,
    /// The life of its sidecar that was heard last; empty if never heard.
    pub incarnation: String,
    /// Whether it does not own because that differs from what the site runs.
    pub build_blocks: bool,
    /// Whether it could own now.
    pub fit: bool,
    /// Why not.
    pub unfit_reason: Option<String>,
    /// How many of its probes of the plant pass; absent if it asks none, or is not known to.
    pub plant_seen: Option<u32>,
    /// What it observes of its workload, in the words of [`Owner::workload`]; absent if it is not heard, or does not say.
    pub workload: Option<String>,
}

/// One probe, as it is on this device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    /// Its name.
    pub name: String,
    /// `tcp`, `http`, `grpc`, `exec` or `heartbeat`.
    pub kind: String,
    /// `plant` or `workload`.
    pub role: String,
    /// Whether it passes; absent while that is not known, as for the workload's probes where it does not run.
    pub up: Option<bool>,
    /// What was wrong with the last answer; empty if nothing was.
    pub wrong: String,
}

/// How well this device and its network keep up: the worst of the last ten seconds, if not said otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vitals {
    /// For how long this device's own tasks stood still, in milliseconds.
    pub stall_ms: u64,
    /// The same of the last minute.
    pub stall_minute_ms: u64,
    /// What the lease had left when it was renewed, in milliseconds; absent on devices that do not own.
    pub lease_left_min_ms: Option<u64>,
    /// How long members took to answer renewals, in milliseconds; absent on devices that do not own.
    pub round_trip_ms: Option<u64>,
    /// How many of a hundred questions were not answered; absent on devices that do not own.
    pub unanswered_percent: Option<u32>,
    /// How long the slowest durable write of late took, in milliseconds.
    pub write_ms: u64,
    /// The heartbeat and the hold in use, in hundredths of those configured.
    pub stretch_percent: u32,
    /// Why this device goes last in elections; absent if it does not.
    pub goes_last: Option<String>,
}

/// The workload on this device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Workload {
    /// `process` or `none`.
    pub kind: String,
    /// `stopped`, `starting` (its program runs, and has not said yet that it is ready), `running`, `not ready` (it runs, and has not
    /// said in time that it is ready or well), `backing off: REASON` or `stopping`.
    pub observed: String,
    /// The epoch it was started with.
    pub epoch: Option<u64>,
    /// Its process id.
    pub pid: Option<u32>,
    /// How often in a row it has ended by itself.
    pub failures: u32,
    /// What keeps its processes together: `cgroup` or `reaper` (the fencer, which orphans become children of); absent until that
    /// is known, and where nothing is started.
    pub held_by: Option<String>,
    /// What it says of itself (`STATUS=` of sd_notify), if it runs and has said anything.
    pub says: Option<String>,
}

/// The mirror into IoT Hub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hub {
    /// `off`, `device-twin`, `module-twin` or `both`.
    pub mirror: String,
    /// The hub's host name; empty if the mirror is off.
    pub name: String,
    /// The device that mirrors for the site: the owner, or whom it has asked because its own line to the hub is cut. Absent
    /// if this device does not know.
    pub mirrored_by: Option<String>,
    /// The newest epoch that all twins were confirmed to show, by whichever device; absent if none was.
    pub confirmed_epoch: Option<u64>,
    /// How often a twin was found to show an earlier epoch than before, since the sidecar started.
    pub rolled_back: u64,
    /// Whether every device's twin is known to show the record. False on devices that do not mirror now.
    pub in_sync: bool,
    /// How long the oldest change has been waiting, in milliseconds; 0 if in sync.
    pub lag_ms: u64,
    /// When the hub last took or confirmed something, in milliseconds since 1970; absent if never.
    pub last_success_unix_ms: Option<u64>,
    /// Each device's flag as this sidecar last saw it.
    pub devices: Vec<HubDevice>,
    /// Answers of the hub since the sidecar started, by HTTP code, or `timeout`, `refused` and the like.
    pub requests: BTreeMap<String, u64>,
    /// The sidecar's own module twin; absent where it is not written. Without device twins the fields above are about it too.
    pub module: Option<HubModule>,
}

/// The sidecar's own module twin, and its link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HubModule {
    /// The hub's host name, and the edgeHub's if there is one between.
    pub name: String,
    /// Whether the link stands.
    pub connected: bool,
    /// Whether the twin shows all that this sidecar has to say. An edgeHub says so once it has stored it.
    pub in_sync: bool,
    /// How long the twin has not shown who owns, in milliseconds; 0 if it does.
    pub lag_ms: u64,
    /// The epoch it shows; absent if unknown.
    pub epoch: Option<u64>,
    /// When the other side last took or told something, in milliseconds since 1970; absent if never.
    pub last_success_unix_ms: Option<u64>,
    /// Answers since the sidecar started, by code; `connect` counts links that stood.
    pub requests: BTreeMap<String, u64>,
    /// What became of the workload's messages at the gate: `forwarded`, `dropped`, `stray` or `failed`; empty without a gate.
    pub gate: BTreeMap<String, u64>,
}

/// One device's flag.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HubDevice {
    /// The device.
    pub device: String,
    /// The epoch its flag shows; absent if unknown.
    pub epoch: Option<u64>,
    /// Why it could not be written or read last time.
    pub error: Option<String>,
}

/// A condition with everything the list of conditions says about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// The name, such as `quorum.lost`.
    pub name: String,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// What it is about: one line.
    pub detail: String,
    /// What it means, in one sentence.
    pub meaning: String,
    /// What a person should do, in one sentence.
    pub advice: String,
    /// The device that raises it. Of another's conditions no more than the name is known here.
    pub device: String,
}

impl From<&Raised> for Condition {
    fn from(raised: &Raised) -> Condition {
        Condition {
            name: raised.name.name().to_owned(),
            severity: raised.name.severity().name().to_owned(),
            detail: raised.detail.clone(),
            meaning: raised.name.meaning().to_owned(),
            advice: raised.name.advice().to_owned(),
            device: String::new(),
        }
    }
}

/// This device's last decision.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Decision {
    /// In one sentence.
    pub reason: String,
    /// When, by the wall clock, in milliseconds since 1970.
    pub unix_ms: u64,
}

/// One ownership of the past or present.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// The epoch.
    pub epoch: u64,
    /// The device that owned.
    pub device: String,
    /// What kind of change began it, such as `takeover` or `transfer`.
    pub cause: String,
    /// Who asked for it; empty if nobody did.
    pub actor: String,
    /// Why, in one sentence.
    pub reason: String,
    /// When it began, by the wall clock of the claiming device, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// When it ended; absent while it lasts.
    pub until_unix_ms: Option<u64>,
    /// What the device ran as it took over; empty if it had not said.
    pub build: String,
}

/// A sidecar that was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Knock {
    /// Where it came from.
    pub address: String,
    /// Who it said it was; empty if it did not say.
    pub device: String,
    /// Why it was refused.
    pub reason: String,
    /// How often since this sidecar started.
    pub count: u64,
    /// The last time, in milliseconds since 1970.
    pub last_unix_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_reports_of_other_versions() {
        let newer =
            r#"{"site":"plant-7","role":"observer","added_later":{"x":1},"members":[{"device":"edge-1"}]}"#;
        let report: Report = serde_json::from_str(newer).expect("reads");
        assert_eq!(report.role, Role::Unknown);
        assert_eq!(report.members[0].device, "edge-1");
        assert_eq!(report.owner, Owner::default());
    }

    #[test]
    fn conditions_bring_their_words() {
        let raised = Raised::new(crate::condition::Condition::QuorumLost, "edge-2, edge-3 silent");
        let row = Condition::from(&raised);
        assert_eq!((row.name.as_str(), row.severity.as_str()), ("quorum.lost", "critical"));
        assert!(!row.meaning.is_empty() && !row.advice.is_empty());
    }
}
