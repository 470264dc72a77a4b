//! What each device runs, as the site has agreed on it, and which device may not own because it runs something else.
//!
//! Each device says of itself what it runs, and whether it stays away from the ownership while that differs from what the site
//! runs. The site runs what most of the devices run that may own; if that is undecided, what the device runs that owned last. So in
//! an update of one device of three or more after the other there is always one who may follow: first those that wait for it, then
//! those that have it. Whoever is named by a person may own whatever it runs.
//!
//! It is no protection against whoever wants to deceive, and never ends an ownership: an owner that differs goes on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Record;
use crate::{
    id::DeviceId,
    ownership::command::{DeclareBuild, Refusal},
    site::Role,
};

/// The longest name of a build, in bytes.
pub const BUILD_MAX: usize = 128;

/// Whether a device owns while it runs something else than the site does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BuildPolicy {
    /// It does not, unless a person names it.
    Block,
    /// It does, and people are told.
    #[default]
    Warn,
    /// It does.
    Allow,
}

/// What a device says of its build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declared {
    /// What it runs: the sidecar's version, `+`, and the fingerprint of the rest.
    pub build: String,
    /// Whether it does not own while that differs from what the site runs.
    #[serde(default)]
    pub blocks: bool,
}

impl Record {
    pub(super) fn declare_build(&mut self, declare: &DeclareBuild) -> Result<(), Refusal> {
        let DeclareBuild { device, declared } = declare;
        if !self.roles.contains_key(device) {
            return Err(Refusal::NotAMember { device: device.clone() });
        }
        if declared.build.is_empty() || declared.build.len() > BUILD_MAX {
            return Err(Refusal::NoBuild);
        }
        self.builds.insert(device.clone(), declared.clone());
        Ok(())
    }

    /// What the site runs; `None` if that is undecided, or nobody has said.
    pub fn site_build(&self) -> Option<&str> {
        let most = self.most_run();
        let last = self.history.back().and_then(|last| self.builds.get(&last.device));
        match (most.as_slice(), last) {
            ([one], _) => Some(one),
            (many, Some(last)) => many.iter().find(|build| **build == last.build).copied(),
            _ => None,
        }
    }

    /// Whether a device is known to run something else than the site does.
    pub fn differs(&self, device: &DeviceId) -> bool {
        let own = self.builds.get(device).map(|declared| declared.build.as_str());
        own.is_some() && self.site_build().is_some_and(|site| own != Some(site))
    }

    /// Whether a device stays away from the ownership because it runs something else than the site does. One that was named to
    /// own next does not, nor one that owned last while the site is paused: nobody else could.
    pub fn is_blocked(&self, device: &DeviceId) -> bool {
        let released = self.released.as_ref().and_then(|released| released.successor.as_ref());
        let named = released == Some(device) || self.handover.as_ref().is_some_and(|h| h.to == *device);
        let blocks = self.builds.get(device).is_some_and(|declared| declared.blocks);
        blocks && !named && !(self.paused.is_some() && self.owned_last(device)) && self.differs(device)
    }

    pub(super) fn is_unblocked(&self, device: &DeviceId) -> Result<(), Refusal> {
        if !self.is_blocked(device) {
            return Ok(());
        }
        let own = self.builds.get(device).map(|declared| declared.build.clone());
        Err(Refusal::BuildDiffers {
            device: device.clone(),
            build: own.unwrap_or_default(),
            site: self.site_build().unwrap_or_default().to_owned(),
        })
    }

    /// The builds that most of the devices run that may own by their role.
    fn most_run(&self) -> Vec<&str> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (device, declared) in &self.builds {
            if self.roles.get(device) == Some(&Role::Voter) {
                *counts.entry(&declared.build).or_default() += 1;
            }
        }
        let most = counts.values().copied().max().unwrap_or(0);
        counts.into_iter().filter(|(_, count)| *count == most).map(|(build, _)| build).collect()
    }
}

#[cfg(test)]
mod tests;
