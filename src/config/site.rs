//! The sections `site` and `device`: who belongs here, with which durations, and which of them this device is.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{
    fault::{Where, nearest},
    section::{Notes, Section, Spot},
    source::Environment,
};
use crate::{
    id::{DeviceId, SiteId},
    site::{Member, Role},
    timing::{Preset, Settings, Timing},
};

/// A majority of nine survives four losses; the takeover bound printed at start is computed for up to this many.
const MEMBERS_MAX: usize = 9;

const MEMBERS_ADVICE: &str = "write [[site.members]] for each device, with device, address and role";
const ADDRESS_ADVICE: &str = "write host:port as the other devices reach it, such as \"10.0.0.11:7600\"";

/// `site.id`.
pub(super) fn site_id(site: &mut Section, notes: &mut Notes) -> Option<SiteId> {
    let (file, key) = (site.file(), site.full("id"));
    let advice = "write a name such as \"plant-7\", the same on all devices";
    let parse = |text: &str| SiteId::new(text).map_err(|e| format!("{text:?} {e}"));
    let id = site.parsed("id", notes, parse, advice);
    if id.is_none() && !site.broken {
        notes.missing(&file, &key, advice);
    }
    id.map(|spot| spot.value)
}

/// `site.members`, with every rule that involves more than one of them.
/// The second value is false if some of them could not be read.
pub(super) fn members(site: &mut Section, notes: &mut Notes) -> (Vec<Member>, bool) {
    let (file, key) = (site.file(), site.full("members"));
    let Some(list) = site.list("members", notes, MEMBERS_ADVICE) else {
        if !site.broken {
            notes.missing(&file, &key, MEMBERS_ADVICE);
        }
        return (Vec::new(), false);
    };
    let mut members: Vec<(Member, Where)> = Vec::new();
    let mut whole = true;
    for (i, node) in list.value.into_iter().enumerate() {
        let at = node.at.clone();
        let before = notes.faults.len();
        match member(Section::new(&format!("{key}[{i}]"), node, notes), notes) {
            Some(member) => members.push((member, at)),
            None => whole = false,
        }
        whole &= notes.faults.len() == before;
    }
    collisions(&members, &key, notes);
    if members.len() > MEMBERS_MAX {
        notes.fault(
            &list.at,
            &key,
            format!("has {} members; at most {MEMBERS_MAX} can vote", members.len()),
            "keep the devices that can run the workload, and an odd number; 3 or 5 are enough for most sites",
        );
    }
    if whole && !members.iter().any(|(m, _)| m.role == Role::Voter) {
        notes.fault(
            &list.at,
            &key,
            "has no voter, so no device could ever own the workload",
            "give at least one device the role \"voter\"",
        );
    }
    (members.into_iter().map(|(m, _)| m).collect(), whole)
}

fn member(mut section: Section, notes: &mut Notes) -> Option<Member> {
    if section.broken {
        return None;
    }
    let at = section.at.clone();
    let advice = "write the device's IoT Hub identity";
    let device = section
        .parsed("device", notes, |t| DeviceId::new(t).map_err(|e| format!("{t:?} {e}")), advice)
        .map(|spot| spot.value);
    if device.is_none() {
        notes.missing(&at, &section.full("device"), advice);
    }
    let address = section.parsed("address", notes, address, ADDRESS_ADVICE).map(|spot| spot.value);
    if address.is_none() {
        notes.missing(&at, &section.full("address"), ADDRESS_ADVICE);
    }
    let role = match section.text("role", notes) {
        None => Some(Role::Voter),
        Some(spot) => role(&spot, &section.full("role"), notes),
    };
    section.done(notes);
    // A wrong role does not hide the device from the other checks.
    Some(Member { device: device?, address: address?, role: role.unwrap_or(Role::Voter) })
}

fn role(spot: &Spot<String>, key: &str, notes: &mut Notes) -> Option<Role> {
    match spot.value.as_str() {
        "voter" => Some(Role::Voter),
        "witness" => Some(Role::Witness),
        "learner" => {
            notes.fault(
                &spot.at,
                key,
                "\"learner\" is not available in this version",
                "leave the device out, or write \"voter\" (may own) or \"witness\" (votes, never owns)",
            );
            None
        }
        other => {
            notes.fault(
                &spot.at,
                key,
                format!("{other:?} is not a role"),
                "write \"voter\" (may own) or \"witness\" (votes, never owns)",
            );
            None
        }
    }
}

fn collisions(members: &[(Member, Where)], key: &str, notes: &mut Notes) {
    let mut devices = BTreeMap::new();
    let mut nodes = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    for (i, (member, at)) in members.iter().enumerate() {
        let name = &member.device;
        if let Some(first) = devices.insert(name.as_str(), i) {
            notes.fault(
                at,
                &format!("{key}[{i}].device"),
                format!("{name} is already {key}[{first}]"),
                "name each device once",
            );
        } else if let Some(first) = nodes.insert(member.device.first_node(), i) {
            notes.fault(
                at,
                &format!("{key}[{i}].device"),
                format!("{name} gets the same member number as {key}[{first}] ({})", members[first].0.device),
                "rename one of the two devices",
            );
        }
        if let Some(first) = addresses.insert(member.address.to_lowercase(), i) {
            notes.fault(
                at,
                &format!("{key}[{i}].address"),
                format!("{} is already the address of {key}[{first}]", member.address),
                "give each device its own address",
            );
        }
    }
}

/// Checks `host:port`: a name, an IPv4 address or an IPv6 address in brackets, and a port from 1 to 65535.
pub(super) fn address(text: &str) -> Result<String, String> {
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(format!("{text:?} has no port"));
    };
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Err(format!("{text:?} has no port; an IPv6 address goes into brackets"));
    }
    if !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().unwrap_or(0) == 0 {
        return Err(format!("{text:?} has no port from 1 to 65535"));
    }
    let ip: Option<IpAddr> = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => match v6.parse::<std::net::Ipv6Addr>() {
            Ok(ip) => Some(IpAddr::V6(ip)),
            Err(_) => return Err(format!("{text:?} holds no IPv6 address in its brackets")),
        },
        None => host.parse().ok(),
    };
    let name = host.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    });
    match ip {
        Some(ip) if ip.is_unspecified() => Err(format!("{text:?} is no address that others can reach")),
        Some(_) => Ok(text.to_owned()),
        None if name && host.len() <= 253 => Ok(text.to_owned()),
        None => Err(format!("{text:?} has no valid host")),
    }
}

/// `site.timing` and `workload.stop_grace` together, because they must fit each other.
pub(super) fn timing(
    site: &mut Section,
    stop_grace: (Option<Spot<Duration>>, bool),
    workload: &Section,
    notes: &mut Notes,
) -> Option<Timing> {
    let mut section = site.section_or_preset("timing", notes);
    let before = notes.faults.len();
    let named = |text: &str| Preset::named(text).ok_or_else(|| format!("{text:?} is not a preset"));
    let preset = section.parsed("preset", notes, named, "write \"default\", \"fast\" or \"fastest\"");
    let preset_broken = notes.faults.len() > before;
    let (heartbeat, heartbeat_broken) = section.duration("heartbeat", notes);
    let (hold, hold_broken) = section.duration("hold", notes);
    let (drift, drift_broken) = section.number("drift_ppm", notes);
    let (refusal, refusal_broken) = section.duration("refusal", notes);
    let (stretch, stretch_broken) = section.number("stretch_max", notes);
    let (grace, grace_broken) = stop_grace;
    let default = preset.as_ref().map(|s| s.value).unwrap_or_default().settings();
    let value = |spot: &Option<Spot<Duration>>, default| spot.as_ref().map_or(default, |s| s.value);
    let outcome = Timing::new(&Settings {
        heartbeat: value(&heartbeat, default.heartbeat),
        hold: value(&hold, default.hold),
        stop_grace: value(&grace, default.stop_grace),
        drift_ppm: drift.as_ref().map_or(default.drift_ppm, |s| s.value),
        refusal: refusal.as_ref().map(|s| s.value),
        stretch_max: stretch.as_ref().map_or(default.stretch_max, |s| s.value),
    });
    let any_broken = heartbeat_broken || hold_broken || drift_broken || refusal_broken || grace_broken;
    let told = if preset_broken { Vec::new() } else { outcome.clone().err().unwrap_or_default() };
    for fault in told {
        // What was written in a way that cannot be read has its own fault; nothing is concluded from its default.
        let (spot_at, broken) = match fault.setting {
            "heartbeat" => (heartbeat.as_ref().map(|s| &s.at), heartbeat_broken || hold_broken),
            "hold" => (hold.as_ref().map(|s| &s.at), hold_broken),
            "stop_grace" => (grace.as_ref().map(|s| &s.at), grace_broken),
            "stretch_max" => (stretch.as_ref().map(|s| &s.at), stretch_broken),
            "drift_ppm" => (drift.as_ref().map(|s| &s.at), drift_broken),
            _ => (refusal.as_ref().map(|s| &s.at), any_broken),
        };
        if broken {
            continue;
        }
        let key = match fault.setting {
            "stop_grace" => workload.full("stop_grace"),
            setting => section.full(setting),
        };
        let at = spot_at.cloned().or(preset.as_ref().map(|s| s.at.clone())).unwrap_or_else(|| section.file());
        notes.fault(&at, &key, &fault.problem, &fault.advice);
    }
    section.done(notes);
    outcome.ok()
}

/// Which member this device is. `IOTEDGE_DEVICEID`, which the IoT Edge runtime sets, serves all devices with one file.
pub(super) fn me(
    device: &mut Section,
    (members, whole): (&[Member], bool),
    environment: &Environment,
    notes: &mut Notes,
) -> Option<DeviceId> {
    let (file, key) = (device.file(), device.full("id"));
    let mut spot = device.text("id", notes);
    let explicit = matches!(&spot, Some(Spot { at: Where::Environment(_), .. }));
    if let (false, Some(id)) = (explicit, environment.get("IOTEDGE_DEVICEID")) {
        spot = Some(Spot { value: id.to_owned(), at: Where::Environment("IOTEDGE_DEVICEID".into()) });
    }
    let Some(spot) = spot else {
        if !notes.faults.iter().any(|f| f.key.as_deref() == Some(&key)) {
            notes.fault(
                &file,
                &key,
                "is missing, and IOTEDGE_DEVICEID is not set",
                "set QUORATE_DEVICE__ID (or device.id) to this device's name in site.members",
            );
        }
        return None;
    };
    let id = match DeviceId::new(spot.value.as_str()) {
        Ok(id) => id,
        Err(e) => {
            let advice = "write this device's name as it stands in site.members";
            notes.fault(&spot.at, &key, format!("{:?} {e}", spot.value), advice);
            return None;
        }
    };
    if !whole || members.iter().any(|m| m.device == id) {
        return Some(id);
    }
    let names: Vec<&str> = members.iter().map(|m| m.device.as_str()).collect();
    let advice = match nearest(id.as_str(), names.iter().copied()) {
        Some(near) => {
            format!("did you mean {near:?}? Or add this device to site.members, on all devices alike")
        }
        None => format!(
            "members are: {}; add this device to site.members, on all devices alike",
            names.join(", ")
        ),
    };
    notes.fault(&spot.at, &key, format!("{id} is not in site.members"), advice);
    None
}
