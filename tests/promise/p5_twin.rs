//! P5: a twin shows no epoch that the site has not reached, never goes back, and no two are active at one epoch. That
//! they follow within seconds is demanded where the hub can be reached (`Stage::twins_follow`).

use std::collections::BTreeMap;

use quorate::id::DeviceId;

use crate::stage::hub::SiteHub;

#[derive(Default)]
pub struct Twins {
    requests: u64,
    /// The highest epoch that each device's twin, and its sidecar's, has shown.
    highest: BTreeMap<DeviceId, (u64, u64)>,
}

impl Twins {
    /// Nothing is read while nobody has asked the hub for anything.
    pub fn check(&mut self, hub: &SiteHub, reached: u64) -> Result<(), String> {
        let requests = hub.memory.requests();
        if std::mem::replace(&mut self.requests, requests) == requests {
            return Ok(());
        }
        let (mut active, mut claimed): (BTreeMap<u64, &DeviceId>, BTreeMap<u64, &DeviceId>) =
            Default::default();
        for device in hub.devices() {
            let (seen, said) = (hub.seen(device), hub.said(device));
            let highest = self.highest.entry(device.clone()).or_default();
            for (what, epoch, highest) in
                [("twin", seen.epoch, &mut highest.0), ("module twin", said.epoch, &mut highest.1)]
            {
                if epoch < *highest {
                    return Err(format!("the {what} of {device} went back from {highest} to {epoch}"));
                }
                *highest = epoch;
                if epoch > reached {
                    return Err(format!("the {what} of {device} shows {epoch}, the site is at {reached}"));
                }
            }
            if seen.active
                && let Some(other) = active.insert(seen.epoch, device)
            {
                return Err(format!("{other} and {device} are both active at epoch {}", seen.epoch));
            }
            if said.active
                && let Some(other) = claimed.insert(said.epoch, device)
            {
                return Err(format!("{other} and {device} both say that they own at epoch {}", said.epoch));
            }
        }
        Ok(())
    }
}
