//! Every condition an operator can meet, under one name everywhere: log event, metric label, status row, twin value
//! and README table.
//!
//! A condition is a state that lasts and that somebody may have to act on. The reason of a single decision is a
//! different thing and lives in `ownership/decide.rs`.

use std::fmt;

use serde::Serialize;

/// How urgent a condition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing to do.
    Info,
    /// The site works, with less in reserve than it should have.
    Warning,
    /// The site does not do its job, or soon will not.
    Critical,
}

macro_rules! conditions {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $severity:ident, $meaning:literal, $advice:literal;)*) => {
        /// The closed list of conditions. Their names are what people script against.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Condition {
            $($(#[$doc])* $variant,)*
        }

        impl Condition {
            /// All of them, in the order of the README's table.
            pub const ALL: &'static [Condition] = &[$(Condition::$variant,)*];

            /// The name used everywhere, such as `quorum.lost`.
            pub fn name(self) -> &'static str {
                match self { $(Condition::$variant => $name,)* }
            }

            /// How urgent it is.
            pub fn severity(self) -> Severity {
                match self { $(Condition::$variant => Severity::$severity,)* }
            }

            /// What it means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Condition::$variant => $meaning,)* }
            }

            /// What a person should do, in one sentence.
            pub fn advice(self) -> &'static str {
                match self { $(Condition::$variant => $advice,)* }
            }
        }
    };
}

conditions! {
    /// No device owns the workload.
    NoOwner = "no.owner", Critical,
        "This device hears a majority, and no device is known to own the workload.",
        "Look at the other conditions and at MAY OWN in `quorate status`. Do not start the workload by hand: a device that is cut off may still run it for a moment.";
    /// This device cannot reach a majority of voters.
    QuorumLost = "quorum.lost", Critical,
        "This device does not hear from a majority of the site's voters, so it owns nothing and does not know who does.",
        "Bring back devices or mend the network between them until a majority can talk.";
    /// Too few spare devices.
    NoSpare = "no.spare", Warning,
        "The loss of one more device would leave the site without a majority.",
        "Bring the missing devices back; a site of two devices needs a third voter to survive a loss.";
    /// Nobody takes over of its own accord.
    SitePaused = "site.paused", Warning,
        "Somebody has paused the site: the device that owns goes on, and if it is lost no other takes over.",
        "`quorate resume` once the work that it was paused for is done. Meanwhile `quorate transfer` moves the workload from a device that owns; if the owner is lost, only `quorate resume` lets another take over (and `quorate undrain`, if all others are drained).";
    /// The owner's lease ran out.
    LeaseLapsed = "lease.lapsed", Warning,
        "The owner could not get its lease confirmed in time and has stopped the workload.",
        "Look for packet loss, an overloaded device or a switch that blocks; nothing needs to be reset.";
    /// The device's own stalls endanger its lease.
    DeviceStrained = "device.strained", Warning,
        "This device's own tasks stand still for so long, again and again, that it could lose its lease; it owns only if no other device is fit.",
        "Look for what takes its processor or memory: another program, heat, a host that is overbooked. It is fit again after 30 s without stalls.";
    /// The timing in use is wider than configured.
    TimingWidened = "timing.widened", Warning,
        "Renewals were so slow that the site uses a wider timing than configured; a takeover takes as much longer.",
        "Mend the network or relieve the devices: the configured timing returns by itself after a minute without trouble.";
    /// The workload keeps ending on the owner.
    WorkloadCrashing = "workload.crashing", Critical,
        "The workload keeps ending by itself on the owner and is restarted with growing pauses.",
        "Read the workload's output in this device's log; move it with `quorate transfer` if only this device is affected.";
    /// The workload cannot be started at all.
    WorkloadCannotStart = "workload.cannot_start", Critical,
        "The workload's command cannot be started on this device.",
        "Check workload.command: the program must exist here and be executable.";
    /// Not all devices run the same.
    BuildDiffers = "build.differs", Warning,
        "The devices of the site do not all run the same sidecar, workload and configuration, so after a takeover something else runs than before; with site.differing_builds = \"block\" the devices that differ do not own.",
        "Finish the update: the standbys first, then `quorate transfer`, then the old owner.";
    /// The workload cannot be ended.
    WorkloadCannotStop = "workload.cannot_stop", Critical,
        "What ends the workload on this device fails, so parts of it may still work here; this device votes for no other meanwhile.",
        "Mend what is named, or end the workload by hand; it is tried again by itself.";
    /// The workload, or what it needs, cannot work here.
    WorkloadUnhealthy = "workload.unhealthy", Warning,
        "The workload, or what it needs, cannot work on this device, so it does not own while that lasts.",
        "Mend what is named; the device may own again by itself then.";
    /// Part of the plant cannot be seen from here.
    PlantUnseen = "plant.unseen", Warning,
        "A probe of the plant fails on this device, so a device that sees more of it owns if there is one.",
        "Look at what the probe asks, and at the way there from this device; the detail says what was answered.";
    /// Health would have moved the ownership once too often.
    BudgetSpent = "budget.spent", Warning,
        "The owner had better give way to another device, and goes on because there were site.changes_per_hour changes in the last hour that nobody ordered.",
        "Find out what flickers: `quorate why` shows the changes. `quorate transfer` moves the workload at once.";
    /// The fencer ended without being told to.
    FencerLost = "fencer.lost", Critical,
        "The process that enforces the workload's deadline ended unexpectedly or gave no sign of life; its workload was killed.",
        "Look for an out-of-memory kill or an overload of this device; the sidecar starts a new fencer by itself.";
    /// Somebody who does not belong here is knocking.
    PeerRefused = "peer.refused", Warning,
        "A sidecar of another site, with another member list, other timing or another store was refused.",
        "Compare the `site` section on the devices named: it must be the same on all of them. If another store is named, see 'A damaged store' in deploy/README.md.";
    /// The store did not pass its checks.
    StoreQuarantined = "store.quarantined", Warning,
        "This device's store was lost or failed its checks at a start, was moved aside, and the device began anew without a vote.",
        "Read found.txt in the folder named, look after the disk, and remove that folder; see 'A damaged store' in deploy/README.md.";
    /// A write to the store failed.
    DiskFailed = "disk.failed", Critical,
        "A write to this device's store failed, so it votes no more, owns no more, and starts again to check its store anew.",
        "Look in the kernel's log for this disk's errors and replace it if they are real; see 'disk.failed' in deploy/README.md.";
    /// There is little or no room for the store.
    DiskFull = "disk.full", Warning,
        "The file system of the data folder is full or nearly so; ownership goes on with the room that was set aside.",
        "Make room on the file system that holds storage.path.";
    /// A member has not been heard.
    MemberSilent = "member.silent", Warning,
        "A device of the site has not been heard for some time.",
        "Check its power, its network and that its sidecar runs.";
    /// A device lost its store and is on its way back.
    MemberRejoining = "member.rejoining", Warning,
        "A device has lost its store and is being taken in again with a new one; until then its vote is missing.",
        "Nothing, if it passes. If it says that the former store is still there, two devices have the same name, or two data folders are in use.";
    /// The hub cannot be reached.
    HubUnreachable = "hub.unreachable", Warning,
        "The IoT Hub cannot be reached from the device that mirrors, or has trouble of its own; ownership on site is not affected.",
        "If the detail says that the hub answers, wait: it is the hub's own trouble. Otherwise check the uplink. The twins are brought up to date by themselves.";
    /// The hub refuses our credentials.
    HubUnauthorized = "hub.unauthorized", Warning,
        "The IoT Hub refuses the credentials (401 or 403), or the module's link (MQTT code 4 or 5).",
        "Check the key, the right that the detail names, and this device's wall clock. A module's link is refused with the same words if the module or its device was deleted, disabled or made anew: look at both in the hub.";
    /// The hub tells us to slow down.
    HubThrottled = "hub.throttled", Warning,
        "The IoT Hub is throttling requests, or the day's quota of messages is used up; the mirror waits and sends only the newest state.",
        "Nothing, unless it lasts: then look for other heavy users of the same hub. A quota that is used up is given again at midnight UTC, or at once with more units.";
    /// The hub does not know one of the devices.
    HubDeviceMissing = "hub.device_missing", Warning,
        "The IoT Hub does not know one of the site's devices or its module (404), or the device's IoT Edge does not know the module's identity; its flag cannot be mirrored.",
        "Create the identity, or correct the id in site.members. An identity that was made anew is known once IoT Edge has started the module again.";
    /// The hub does not let one of the devices connect.
    HubDeviceDisabled = "hub.device_disabled", Warning,
        "One of the site's devices is disabled in IoT Hub: its flag is written, but the device cannot connect to see it.",
        "Enable the device identity if it was not disabled on purpose.";
    /// A device's identity was made anew.
    HubDeviceRecreated = "hub.device_recreated", Warning,
        "A device's identity was deleted and made anew in IoT Hub, and its twin began empty; its flag was written again.",
        "Check that the device has its new credentials, and write anew what else stood in its twin.";
    /// The hub answered with something that is not the hub.
    HubBadAnswer = "hub.bad_answer", Warning,
        "What answers at the hub's address does not speak the IoT Hub's language (HTML, a redirect, other JSON).",
        "Look for a captive portal or proxy, and check the host name in the connection string.";
    /// The hub's certificate is not trusted.
    HubUntrusted = "hub.untrusted", Warning,
        "The certificate of what answers at the hub's address is not trusted.",
        "Check hub.ca_file, the host name, and whether something intercepts TLS on the way.";
    /// A twin shows an epoch that this site has not reached.
    TwinAhead = "twin.ahead", Critical,
        "A twin shows a higher epoch than this site has reached; the mirror does not overwrite it.",
        "Find out who wrote it: another site with the same devices, or a site restored from an old backup. The next ownership of this site will be above it, and then the twins are written again: `quorate transfer` begins one.";
    /// A twin shows an epoch that cannot be right.
    TwinImplausible = "twin.implausible", Critical,
        "A twin shows an epoch so far above this site's that no site can have reached it; the mirror neither believes nor overwrites it.",
        "Find out who wrote it, and take the flag out of that twin; it is written anew within a minute.";
    /// A twin showed an earlier epoch than before.
    TwinRolledBack = "twin.rolled_back", Warning,
        "A twin showed an earlier epoch than it was confirmed to show before, or none; it was written again.",
        "Nothing after a regional failover of the hub, which forgets its last minutes. Otherwise find out who writes to the twin.";
    /// Something else stood where the flag belongs.
    TwinForeign = "twin.foreign", Warning,
        "Something that is no flag stood where the flag belongs in a twin; it was replaced.",
        "Find out who writes there, or choose another path with hub.flag.";
}

impl Condition {
    /// The condition of this name.
    pub fn named(name: &str) -> Option<Condition> {
        Condition::ALL.iter().copied().find(|condition| condition.name() == name)
    }

    /// Whether it is about the site as a whole, so that two devices that raise it say the same twice. Any other is about the device
    /// that raises it.
    pub fn is_of_the_site(self) -> bool {
        matches!(
            self,
            Condition::NoOwner
                | Condition::QuorumLost
                | Condition::NoSpare
                | Condition::SitePaused
                | Condition::TimingWidened
                | Condition::BuildDiffers
                | Condition::MemberSilent
                | Condition::MemberRejoining
        )
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Severity {
    /// The name as it stands in the README and the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

impl Serialize for Condition {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A condition that holds now, with what it is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Raised {
    /// Which condition.
    pub name: Condition,
    /// The device, address or file it is about, and the facts: one line.
    pub detail: String,
}

impl Raised {
    /// A condition with its facts.
    pub fn new(name: Condition, detail: impl Into<String>) -> Raised {
        Raised { name, detail: detail.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_written_alike() {
        let mut names: Vec<_> = Condition::ALL.iter().map(|c| c.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Condition::ALL.len());
        assert!(
            names
                .iter()
                .all(|n| n.contains('.') && n.chars().all(|c| c.is_ascii_lowercase() || ".-_".contains(c)))
        );
    }
}
