//! P5: a twin shows no epoch that the site has not reached, never goes back, and no two are active at one epoch. That
//! they follow within seconds is demanded where the hub can be reached (`Stage::twins_follow`).

use std::collections::BTreeMap;

use quorate::id::DeviceId;

use crate::stage::hub::SiteHub;

#[derive(Default)]
pub struct Twins {
    requests: u64,
    /// The highest epoch that each twin has shown.
    highest: BTreeMap<DeviceId, u64>,
}

impl Twins {
    /// Nothing is read while nobody has asked the hub for anything.
    pub fn check(&mut self, hub: &SiteHub, reached: u64) -> Result<(), String> {
        let requests = hub.memory.requests();
        if std::mem::replace(&mut self.requests, requests) == requests {
            return Ok(());
        }
        let mut active: BTreeMap<u64, &DeviceId> = BTreeMap::new();
        for device in hub.devices() {
            let seen = hub.seen(device);
            let highest = self.highest.entry(device.clone()).or_default();
            if seen.epoch < *highest {
                return Err(format!("the twin of {device} went back from {highest} to {}", seen.epoch));
            }
            *highest = seen.epoch;
            if seen.epoch > reached {
                return Err(format!("the twin of {device} shows {}, the site is at {reached}", seen.epoch));
            }
            if seen.active
                && let Some(other) = active.insert(seen.epoch, device)
            {
                return Err(format!("{other} and {device} are both active at epoch {}", seen.epoch));
            }
        }
        Ok(())
    }
}
