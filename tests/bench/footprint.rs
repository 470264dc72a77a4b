//! What an idle site costs: `cargo bench --bench footprint`.
//!
//! Three real sidecars on loopback with default settings; the owner runs a workload that sleeps, so that all that is seen is our
//! own. With a hub, the emulated one in the benchmark's own process, both mirrors are on: the device twins over REST, and each
//! sidecar's module twin through the edgeHub of its device, signed for by a workload socket. Everything is read from /proc at the end of the idle time, and compared with its
//! beginning. Resident memory counts pages shared between the processes of this machine in full, as they would be on a
//! device of their own; PSS shares them out. Each sidecar and fencer is shown apart, and so is the process that waits to become a standby's workload.
//!
//! `QUORATE_BENCH_IDLE_S` (default 60), `QUORATE_BENCH_TIMING` (a preset), `QUORATE_BENCH_HUB` (`none`, the default, or `both`),
//! `QUORATE_BENCH_PROGRAM`. Ends with 1 if anything was written while idle.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]
#![expect(clippy::disallowed_methods, reason = "real processes, set up by the environment")]

#[expect(dead_code, reason = "`hub` needs the rest")]
mod cloud;
#[path = "../../src/cli/demo/processes.rs"]
mod processes;
mod rivals;
mod site;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use self::{
    cloud::{Cloud, Mirror},
    site::{Site, Told},
};

/// The unit of CPU times in /proc, per second: the same on all Linux systems that we build for.
const USER_HZ: f64 = 100.0;

/// What /proc says of one process.
struct Sample {
    cpu_ticks: u64,
    written: u64,
    wakeups: u64,
    rss_kib: u64,
    anonymous_kib: u64,
    peak_kib: u64,
    pss_kib: u64,
    threads: u64,
}

impl Sample {
    fn of(pid: u32) -> Result<Sample> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let field = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|l| l.split_ascii_whitespace().next()?.parse().ok()).unwrap_or_default()
        };
        let (stat, status, io) = (read("stat")?, read("status")?, read("io")?);
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let times = after_name.split_ascii_whitespace().skip(11).take(2);
        let wakeups = fs::read_dir(format!("/proc/{pid}/task"))?.flatten().map(|task| {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            field(&status, "voluntary_ctxt_switches")
        });
        Ok(Sample {
            cpu_ticks: times.filter_map(|t| t.parse::<u64>().ok()).sum(),
            written: field(&io, "write_bytes"),
            wakeups: wakeups.sum(),
            rss_kib: field(&status, "VmRSS"),
            anonymous_kib: field(&status, "RssAnon"),
            peak_kib: field(&status, "VmHWM"),
            pss_kib: field(&read("smaps_rollup")?, "Pss"),
            threads: field(&status, "Threads"),
        })
    }
}

fn main() -> ExitCode {
    if !std::env::args().any(|a| a == "--bench") {
        println!("this benchmark runs by `cargo bench --bench footprint`");
        return ExitCode::SUCCESS;
    }
    let measured = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(measure()));
    match measured {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("the benchmark failed: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure() -> Result<bool> {
    let idle = match std::env::var("QUORATE_BENCH_IDLE_S") {
        Ok(text) => text.parse().with_context(|| format!("QUORATE_BENCH_IDLE_S={text:?} is not a number"))?,
        Err(_) => 60,
    };
    let timings = site::timings()?;
    let timing = *timings.first().context("one timing")?;
    let cloud = match std::env::var("QUORATE_BENCH_HUB").as_deref() {
        Err(_) | Ok("none") => None,
        Ok("both") => Some(Cloud::start(Mirror::Both)?),
        Ok(other) => bail!("QUORATE_BENCH_HUB={other:?}: write none or both"),
    };
    let told = cloud.as_ref().map_or_else(|| Ok(Told::default()), Cloud::told)?;
    let site = Site::start(&["sleep", "1000000"], timing, told)?;
    let (owner, epoch) = site.settled().await?;
    if let Some(cloud) = &cloud {
        cloud.agrees(owner, epoch).await?;
    }
    // Whatever a first start still has to do is done by then.
    tokio::time::sleep(Duration::from_secs(5)).await;

    let watched: Vec<(String, u32)> = (0..site.devices.len())
        .flat_map(|n| {
            let role = if n == owner { "owner" } else { "standby" };
            // Below the sidecar is its fencer; below that the workload, which is not ours, or what waits to become it.
            let ours = site.processes(n);
            let waits = |pid: &u32| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.split(|b| *b == 0).nth(1) == Some(b"fencer-wait")
            };
            let waiting = ours.iter().filter(|pid| waits(pid)).map(|pid| ("waiting shim", *pid));
            let named = ["sidecar", "fencer"].into_iter().zip(ours.iter().copied()).chain(waiting);
            named.map(|(what, pid)| (format!("{role}'s {what}"), pid)).collect::<Vec<_>>()
        })
        .collect();
    let sample = || watched.iter().map(|(_, pid)| Sample::of(*pid)).collect::<Result<Vec<_>>>();
    let files = || {
        let mut all = BTreeMap::new();
        site.devices.iter().for_each(|d| list(&d.home, &mut all));
        all
    };
    let (before, files_before, wire_before) = (sample()?, files(), wire(&site));
    let asked_before = cloud.as_ref().map(Cloud::asked);
    eprintln!("idle for {idle} s");
    tokio::time::sleep(Duration::from_secs(idle)).await;
    let (after, files_after, wire_after) = (sample()?, files(), wire(&site));
    let (still_owner, _) = site.settled().await?;

    let seconds = idle.max(1) as f64;
    let mib = |kib: u64| kib as f64 / 1024.0;
    let hub = if cloud.is_some() { "both mirrors on" } else { "no hub" };
    println!("Idle for {idle} s: three sidecars on loopback, timing {}, {hub}", timing.name());
    println!("{}", site.program.display());
    println!(
        "\n  {:<18} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10} {:>14}",
        "", "RSS MiB", "of heap", "peak", "PSS MiB", "threads", "CPU %", "wakeups/s", "written/hour"
    );
    for (((name, _), before), after) in watched.iter().zip(&before).zip(&after) {
        println!(
            "  {name:<18} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>8} {:>8.2} {:>10.1} {:>12} B",
            mib(after.rss_kib),
            mib(after.anonymous_kib),
            mib(after.peak_kib),
            mib(after.pss_kib),
            after.threads,
            (after.cpu_ticks - before.cpu_ticks) as f64 * 100.0 / USER_HZ / seconds,
            (after.wakeups.saturating_sub(before.wakeups)) as f64 / seconds,
            (after.written - before.written) * 3600 / idle.max(1),
        );
    }
    println!("\non the wire, both directions, with 52 bytes of TCP and IP headers a segment:");
    let mut pairs: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    for (connection, bytes) in &wire_after {
        let before = wire_before.get(connection).copied().unwrap_or_default();
        *pairs.entry(connection.0).or_default() += bytes.saturating_sub(before);
    }
    for ((one, other), bytes) in pairs {
        let role = |n| if n == owner { "owner" } else { "standby" };
        let rate = bytes as f64 / seconds;
        println!("  {} and {} ({} and {}): {rate:.0} B/s", one + 1, other + 1, role(one), role(other));
    }
    let written: u64 = before.iter().zip(&after).map(|(b, a)| a.written - b.written).sum();
    let changed: Vec<_> =
        files_after.iter().filter(|(path, now)| files_before.get(*path) != Some(*now)).collect();
    if let (Some(cloud), Some(before)) = (&cloud, asked_before) {
        println!("\nwhat the hub was asked for while idle: {:?}", cloud.asked().since(before));
    }
    println!("\nfiles changed while idle: {}", changed.len());
    changed.iter().for_each(|(path, _)| println!("  {path}"));
    for device in &site.devices {
        let mut store = BTreeMap::new();
        list(&device.home.join("data"), &mut store);
        let (length, blocks) = store.values().fold((0, 0), |(l, b), f| (l + f.length, b + f.blocks));
        println!(
            "{}'s data folder: {} KiB in {} files, {} KiB on disk",
            device.id,
            length / 1024,
            store.len(),
            blocks / 2
        );
    }
    if still_owner != owner {
        println!("the owner changed meanwhile");
    }
    size(&site.program);
    println!("machine: load {}", fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());

    print!("\n{}", rivals::table(&["RSS / PSS MiB", "CPU owner / standby"]));
    Ok(written == 0 && changed.is_empty())
}

/// A pair of members, and the caller's end of a connection between them.
type Connection = ((usize, usize), String);

/// The bytes that were exchanged on each open connection, as the kernel counts them (ss(8)). What was exchanged on one
/// that has been closed meanwhile is not seen.
fn wire(site: &Site) -> BTreeMap<Connection, u64> {
    let mut connections = BTreeMap::new();
    let sidecars: Vec<u32> =
        (0..site.devices.len()).filter_map(|n| site.processes(n).first().copied()).collect();
    for (to, device) in site.devices.iter().enumerate() {
        // The caller's end only, or each would count twice.
        let filter = format!("( dport = :{} )", device.peer);
        let Ok(said) = Command::new("ss").args(["-tinpHO", "state", "established", &filter]).output() else {
            return connections;
        };
        for line in String::from_utf8_lossy(&said.stdout).lines() {
            let Some(from) = sidecars.iter().position(|pid| line.contains(&format!("pid={pid},"))) else {
                continue;
            };
            let number = |name: &str| -> u64 {
                let value = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name));
                value.and_then(|v| v.parse().ok()).unwrap_or_default()
            };
            let segments = number("segs_out:") + number("segs_in:");
            let bytes = number("bytes_sent:") + number("bytes_received:") + 52 * segments;
            let end = line.split_ascii_whitespace().nth(2).unwrap_or_default();
            connections.insert(((from.min(to), from.max(to)), end.to_owned()), bytes);
        }
    }
    connections
}

fn size(program: &Path) {
    if let Ok(metadata) = fs::metadata(program) {
        println!("{}: {:.1} MiB", program.display(), metadata.len() as f64 / 1024.0 / 1024.0);
    }
}

/// What tells whether a file was written to.
#[derive(PartialEq, Eq)]
struct Written {
    length: u64,
    blocks: u64,
    changed: (i64, i64),
}

fn list(folder: &Path, found: &mut BTreeMap<String, Written>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            list(&entry.path(), found);
        } else if metadata.is_file() {
            let changed = (metadata.mtime(), metadata.mtime_nsec());
            let written = Written { length: metadata.len(), blocks: metadata.blocks(), changed };
            found.insert(entry.path().display().to_string(), written);
        }
    }
}
