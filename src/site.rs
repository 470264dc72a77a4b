//! The site as its members must agree on it: who belongs to it, in which role, with which timing.
//!
//! All of it comes from the one configuration file that every device shares. [`Site::digest`] lets two sidecars see in
//! one number whether they were given the same; addresses are left out of it, because the same device may be reached
//! by different names. This file checks nothing: `config/` is the only builder of a `Site` from text, and it refuses
//! repeated devices, colliding node ids and a site without voters.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    id::{DeviceId, SiteId, fnv1a},
    timing::{STRETCH_MAX, Settings, Timing},
};

/// What a member does in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Votes, and may own the workload.
    Voter,
    /// Votes, and never owns: the third vote of a site with two devices that can run the workload.
    Witness,
}

impl Role {
    /// The name as written in `site.members`.
    pub fn name(self) -> &'static str {
        match self {
            Role::Voter => "voter",
            Role::Witness => "witness",
        }
    }

    /// Whether a member of this role may own the workload.
    pub fn may_own(self) -> bool {
        self == Role::Voter
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One device of the site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The device; the same text as its IoT Hub identity.
    pub device: DeviceId,
    /// Where the other members reach its sidecar: `host:port`, the host a name or an IP address (IPv6 in brackets).
    pub address: String,
    /// What it does in the group.
    pub role: Role,
}

/// The site: its name, its members, its durations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The site's name.
    pub id: SiteId,
    /// All members, in the order of the file. The order means nothing.
    pub members: Vec<Member>,
    /// The durations that the safety argument rests on.
    pub timing: Timing,
}

impl Site {
    /// The member with this device id.
    pub fn member(&self, device: &DeviceId) -> Option<&Member> {
        self.members.iter().find(|m| m.device == *device)
    }

    /// How many members make a majority of all that the list names. Voters and witnesses count alike. Who votes at this
    /// moment is not known here.
    pub fn quorum(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// One number for what all members must have been given alike: the site's name, the devices with their roles in
    /// any order, and the timing. Addresses are left out. Stable across builds and architectures.
    pub fn digest(&self) -> u64 {
        let mut members: Vec<String> =
            self.members.iter().map(|m| format!("{} {}\n", m.device, m.role)).collect();
        members.sort_unstable();
        let t = &self.timing;
        // Left out where nobody has changed them, as the number was before these two belonged to it.
        let mut rest = String::new();
        if t.stretch_max() != STRETCH_MAX {
            rest += &format!("stretch_max {}\n", t.stretch_max());
        }
        if t.drift_ppm() != Settings::default().drift_ppm {
            rest += &format!("drift_ppm {}\n", t.drift_ppm());
        }
        let text = format!(
            "site {}\n{}heartbeat {}\nhold {}\nstop_grace {}\nrefusal {}\n{rest}",
            self.id,
            members.concat(),
            t.heartbeat().as_micros(),
            t.hold().as_micros(),
            t.stop_grace().as_micros(),
            t.refusal().as_micros(),
        );
        fnv1a(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn member(device: &str, address: &str, role: Role) -> Member {
        Member { device: DeviceId::new(device).expect("name"), address: address.into(), role }
    }

    fn site(members: Vec<Member>, settings: &Settings) -> Site {
        Site {
            id: SiteId::new("plant-7").expect("name"),
            members,
            timing: Timing::new(settings).expect("timing"),
        }
    }

    fn three() -> Vec<Member> {
        vec![
            member("edge-1", "10.0.0.1:7600", Role::Voter),
            member("edge-2", "10.0.0.2:7600", Role::Voter),
            member("edge-3", "10.0.0.3:7600", Role::Witness),
        ]
    }

    #[test]
    fn digest_knows_what_must_agree_and_nothing_else() {
        let base = site(three(), &Settings::default());
        let mut turned = three();
        turned.rotate_left(1);
        turned[0].address = "edge-2.plant:7600".into();
        assert_eq!(base.digest(), site(turned, &Settings::default()).digest());

        let mut role = three();
        role[2].role = Role::Voter;
        let slower = Settings { heartbeat: Duration::from_millis(70), ..Settings::default() };
        let wider = Settings { stretch_max: 2, ..Settings::default() };
        let steadier =
            Settings { drift_ppm: 2000, refusal: Some(base.timing.refusal()), ..Settings::default() };
        let mut renamed = base.clone();
        renamed.id = SiteId::new("plant-8").expect("name");
        for other in [
            site(three()[..2].to_vec(), &Settings::default()),
            site(role, &Settings::default()),
            site(three(), &slower),
            site(three(), &wider),
            site(three(), &steadier),
            renamed,
        ] {
            assert_ne!(base.digest(), other.digest(), "{other:?}");
        }
    }

    #[test]
    fn digest_never_changes_between_builds() {
        assert_eq!(site(three(), &Settings::default()).digest(), 0x9882_06a9_b2ae_aac9);
    }

    #[test]
    fn members_are_found_and_counted() {
        let site = site(three(), &Settings::default());
        let edge_2 = DeviceId::new("edge-2").expect("name");
        assert_eq!(site.member(&edge_2).map(|m| m.role), Some(Role::Voter));
        assert_eq!(site.member(&DeviceId::new("edge-9").expect("name")), None);
        assert_eq!(site.quorum(), 2);
        assert!(!Role::Witness.may_own());
    }
}
