//! `quorate check`: whether this device can do what its configuration asks of it, before it has to.
//!
//! It measures what the timing rests on (`measure.rs`), judges it (`verdict.rs`), and says which of the timings this device
//! can keep. It asks nothing of a running sidecar and changes nothing.

mod hub;
mod measure;
mod plant;
mod verdict;
mod workload;

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use self::verdict::{Measured, Spread, ms};
use super::{CONFIG, DONE, NO, REFUSED, Stop, client::Trouble, say, tell};
use crate::{
    clock::{BootClock, Clock, sleep_until},
    config::{self, Environment},
    raft::peer::transport::TcpDialer,
    timing::Preset,
};

/// Check this device: configuration, disk, stalls, network, hub, and which timing it can keep
///
/// Measures for some seconds how long durable writes take in the data folder, by how much
/// timers come too late, and how long the other members take to answer; then says which of
/// the timings "fastest", "fast" and "default" this device can keep, and why not the others.
/// Run it under the load that the device will have. A running sidecar is not disturbed, and
/// nothing is changed in the hub.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate check\n  quorate check --seconds 60 --config /etc/quorate/plant-7.toml\n  \
                        quorate check --json | jq -r .keeps\n\n\
                        Exit codes: 0 this device keeps the timing that is configured and reaches its hub, 1 it\n\
                        does not, 2 it could not be measured, 78 the configuration is wrong."
)]
pub(super) struct Args {
    /// The configuration file [default: QUORATE_CONFIG, then /etc/quorate/quorate.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// For how long to measure
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Print one JSON object: ok, reasons, keeps, configured, timings, hub and all measured
    #[arg(long)]
    json: bool,
}

/// A member, and how it answered.
struct Answer<'a> {
    device: &'a str,
    address: &'a str,
    round_trip: Result<Spread, String>,
}

pub(super) async fn run(args: Args, environment: &Environment) -> Result<u8, Stop> {
    let config = config::load(args.config.as_deref(), environment).map_err(|faults| {
        tell(&format!("quorate: {faults}"));
        CONFIG
    })?;
    let folder = &config.storage.path;
    let unmeasured = |e: &dyn std::fmt::Display| Trouble {
        message: format!("cannot write in {}: {e}", folder.display()),
        hint: "run it as the sidecar's user, and make the folder of storage.path first".into(),
        code: REFUSED,
    };
    let scratch = measure::Scratch::open(folder).map_err(|e| unmeasured(&e))?;
    tell(&format!("measuring for {} s in {}", args.seconds, folder.display()));
    let until = BootClock.now() + Duration::from_secs(args.seconds);
    let others = config.site.members.iter().filter(|member| member.device != config.me);
    let members = futures_util::future::join_all(others.map(async |member| Answer {
        device: member.device.as_str(),
        address: &member.address,
        round_trip: measure::round_trips(member, &TcpDialer, until).await,
    }));
    let (writes, stalls, members, hub, ()) = tokio::join!(
        measure::writes(scratch, until),
        measure::stalls(until),
        members,
        hub::tries(&config),
        progress(args.seconds)
    );
    let writes = writes.map_err(|e| unmeasured(&e))?;
    let (Some(writes), Some(stalls)) = (writes, stalls) else {
        return Err(unmeasured(&"not once in that time").into());
    };
    let round_trips = members.iter().filter_map(|answer| answer.round_trip.as_ref().ok().copied()).collect();
    let measured = Measured { writes, stalls, round_trips, needed: config.site.members.len() / 2 };
    let configured = verdict::against(&measured, &config.site.timing);
    let presets = verdict::presets(&measured);
    let (workload, plant) = tokio::join!(workload::tries(&config), plant::tries(&config));
    let reasons = reasons(&configured, &[("hub", &hub), ("workload", &workload), ("plant", &plant)]);
    if args.json {
        say(&json(&reasons, &measured, &members, &presets, &configured, (&workload, &plant, &hub))
            .to_string())?;
    } else {
        let head = format!("{}: {} of {}", config.file.display(), config.me, config.site.id);
        say(&text(
            &head,
            &measured,
            &members,
            &presets,
            (&config.site.timing.to_string(), &configured),
            &[("workload", &workload), ("plant", &plant), ("hub", &hub)],
        ))?;
    }
    Ok(if reasons.is_empty() { DONE } else { NO })
}

/// Why the answer is no; nothing if it is yes.
fn reasons(configured: &[String], tried: &[Part<'_>]) -> Vec<String> {
    let timing = configured.iter().map(|why| format!("the configured timing is not kept: {why}"));
    timing.chain(tried.iter().flat_map(|(_, tried)| failed(tried))).collect()
}

/// What was tried of one part of the device, under its name.
type Part<'a> = (&'static str, &'a [hub::Tried]);

fn failed(tried: &[hub::Tried]) -> impl Iterator<Item = String> {
    tried.iter().filter_map(|tried| Some(format!("{}: {}", tried.what, tried.error.as_ref()?)))
}

/// A word each five seconds, so that nobody thinks that it hangs.
async fn progress(seconds: u64) {
    for left in (1..seconds).rev().filter(|left| left % 5 == 0) {
        sleep_until(&BootClock, BootClock.now() + Duration::from_secs((seconds - left).min(5))).await;
        tell(&format!("  {left} s left"));
    }
}

fn keeps(presets: &[(Preset, Vec<String>)]) -> Option<&'static str> {
    presets.iter().find(|(_, against)| against.is_empty()).map(|(preset, _)| preset.name())
}

fn json(
    reasons: &[String],
    measured: &Measured,
    members: &[Answer<'_>],
    presets: &[(Preset, Vec<String>)],
    configured: &[String],
    (workload, plant, hub): (&[hub::Tried], &[hub::Tried], &[hub::Tried]),
) -> serde_json::Value {
    let members: Vec<_> = members
        .iter()
        .map(|Answer { device, address, round_trip }| {
            let (spread, error) = (round_trip.as_ref().ok(), round_trip.as_ref().err());
            serde_json::json!({"device": device, "address": address, "round_trip": spread, "error": error})
        })
        .collect();
    let timings: Vec<_> = presets
        .iter()
        .map(|(preset, against)| {
            serde_json::json!({"timing": preset.name(), "kept": against.is_empty(), "reasons": against})
        })
        .collect();
    serde_json::json!({
        "ok": reasons.is_empty(),
        "reasons": reasons,
        "keeps": keeps(presets),
        "configured": {"kept": configured.is_empty(), "reasons": configured},
        "timings": timings,
        "writes": measured.writes,
        "stalls": measured.stalls,
        "network_judged": measured.majority().is_some(),
        "members": members,
        "workload": workload,
        "plant": plant,
        "hub": hub,
    })
}

fn text(
    head: &str,
    measured: &Measured,
    members: &[Answer<'_>],
    presets: &[(Preset, Vec<String>)],
    (timing, configured): (&str, &[String]),
    parts: &[Part<'_>],
) -> String {
    let mut text = format!("config    {head}\n");
    let spread = |s: &Spread| format!("p50 {}, p99 {}, max {}", ms(s.p50), ms(s.p99), ms(s.max));
    let _ = writeln!(text, "writes    {} durable ones: {}", measured.writes.n, spread(&measured.writes));
    let _ = writeln!(text, "stalls    {} timers late by: {}", measured.stalls.n, spread(&measured.stalls));
    for Answer { device, address, round_trip } in members {
        let what = match round_trip {
            Ok(s) => format!("answers after: {}", spread(s)),
            Err(why) => format!("does not answer: {why}"),
        };
        let _ = writeln!(text, "member    {device} at {address} {what}");
    }
    if measured.majority().is_none() {
        let _ = writeln!(text, "          too few members answer, so the network was not judged");
    }
    for (name, tried) in parts {
        for hub::Tried { what, took_ms, error } in *tried {
            let how = error.as_ref().map_or_else(
                || if *took_ms > 0 { format!("works, in {took_ms} ms") } else { "works".into() },
                |why| format!("does not work: {why}"),
            );
            let _ = writeln!(text, "{name:<9} {what}: {how}");
        }
    }
    text.push('\n');
    let verdict = |text: &mut String, name: &str, against: &[String]| {
        let first = if against.is_empty() { "yes" } else { "no" };
        let _ = writeln!(
            text,
            "{name:<9} {first}{}{}",
            if against.is_empty() { "" } else { ": " },
            against.join("; ")
        );
    };
    for (preset, against) in presets {
        verdict(&mut text, preset.name(), against);
    }
    let best = keeps(presets);
    let best = best.map_or("none of these timings".into(), |name| format!("timing = \"{name}\""));
    let _ = writeln!(text, "\nthis device can keep {best}");
    let _ = writeln!(text, "configured: {timing}");
    verdict(&mut text, "kept", configured);
    for (name, tried) in parts.iter().filter(|(_, tried)| !tried.is_empty()) {
        verdict(&mut text, name, &failed(tried).collect::<Vec<_>>());
    }
    text
}
