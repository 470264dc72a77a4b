//! What a process is held to: `limits`, and `ready` with its two spans.

use std::time::Duration;

use super::{Kind, foreign};
use crate::{
    config::section::{Notes, Section, Spot},
    workload::{Demand, Limits},
};

/// How long a workload that says when it is ready may take for that, if nothing else is written.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// What may be demanded of its words.
const DEMANDS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// The section `workload.limits`.
pub(super) fn limits(section: &mut Section, kind: Option<&Spot<Kind>>, notes: &mut Notes) -> Limits {
    let key = section.full("limits");
    let mut inside = section.section("limits", notes);
    let at = inside.at.clone();
    let advice = "write a number and a unit, at least 16 MiB: \"512MiB\" or \"2GiB\"";
    let memory = inside.parsed("memory", notes, size, advice).map(|s| s.value);
    let advice = "write how many processors, as text with at most three decimals: \"0.5\" or \"2\"";
    let cpu = inside.parsed("cpu", notes, processors, advice).map(|s| s.value);
    let mut count = |name: &'static str, least: u32, notes: &mut Notes| {
        let spot = inside.number(name, notes).0?;
        if spot.value < least {
            let problem = format!("is {}, and no program runs with less than {least}", spot.value);
            notes.fault(&spot.at, &inside.full(name), problem, "write more, or remove it");
        }
        Some(spot.value)
    };
    let processes = count("processes", 1, notes);
    let open_files = count("open_files", 16, notes);
    inside.done(notes);
    let limits = Limits { memory, cpu, processes, open_files };
    if !limits.is_empty() && !kind.is_none_or(|kind| kind.value == Kind::Process) {
        let problem = "is for kind = \"process\", and kind is another";
        notes.fault(&at, &key, problem, "limit a container where it is made (createOptions), or remove it");
    }
    limits
}

/// Bytes, from 16 MiB to 1 EiB.
fn size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let read = || {
        let text = text.trim();
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let (_, shift) = units.iter().find(|(name, _)| *name == unit.trim())?;
        number.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|size| (16 << 20..=1 << 60).contains(size))
    };
    read().ok_or_else(|| format!("{text:?} is not a size from 16MiB on"))
}

/// Thousandths of a processor, from 10 to 1024000.
fn processors(text: &str) -> Result<u32, String> {
    let read = || {
        let (whole, part) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > 3 {
            return None;
        }
        let part: u32 = format!("{part:0<3}").parse().ok()?;
        let milli = whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(part)?;
        (10..=1_024_000).contains(&milli).then_some(milli)
    };
    read().ok_or_else(|| format!("{text:?} is not a number of processors from 0.01 to 1024"))
}

/// `ready`, `ready_within` and `watchdog`.
pub(super) fn readiness(
    section: &mut Section,
    kind: Option<&Spot<Kind>>,
    notes: &mut Notes,
) -> Option<Demand> {
    let parse = |text: &str| match text {
        "started" => Ok(false),
        "notify" => Ok(true),
        other => Err(format!("{other:?} is not known")),
    };
    let advice =
        "write \"started\" (it is ready once its program runs) or \"notify\" (it says so: sd_notify)";
    let ready = section.parsed("ready", notes, parse, advice);
    let mut span = |key: &'static str, notes: &mut Notes| {
        let spot = section.duration(key, notes).0?;
        if !DEMANDS.contains(&spot.value) {
            let problem = format!("{} is outside 100ms to 1h", crate::config::show_duration(spot.value));
            notes.fault(&spot.at, &section.full(key), problem, "write the longest time that is still well");
        }
        Some(spot)
    };
    let (within, watchdog) = (span("ready_within", notes), span("watchdog", notes));
    if !kind.is_none_or(|kind| kind.value == Kind::Process) {
        foreign(section, "ready", ready.as_ref(), "\"process\"", notes);
    }
    if ready.as_ref().is_some_and(|ready| ready.value) {
        let within = within.map_or(READY_WITHIN, |spot| spot.value);
        return Some(Demand { within, watchdog: watchdog.map(|spot| spot.value) });
    }
    // The default may be written out.
    let within = within.filter(|spot| spot.value != READY_WITHIN);
    for (key, spot) in [("ready_within", within), ("watchdog", watchdog)] {
        if let Some(spot) = spot {
            let problem = "is for ready = \"notify\", and the workload is not asked";
            notes.fault(&spot.at, &section.full(key), problem, "write ready = \"notify\", or remove it");
        }
    }
    None
}
