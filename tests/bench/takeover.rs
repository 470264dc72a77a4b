//! How long nobody works: `cargo bench --bench takeover [-- FAULT ...]`.
//!
//! Three real sidecars on loopback with a timing preset, a fencer and a ticking workload on the owner, no hub. One
//! site serves all trials; before each it is at rest, and then waits a random moment, so that faults fall anywhere
//! between two renewals. The kinds of fault take turns, so that a noisy minute of the machine hits all alike. All
//! times come from the workload's own tick records on the boot clock, never from what the sidecars believe. Devices
//! are processes of one machine: the network costs next to nothing here.
//!
//! `QUORATE_BENCH_TIMING` (`default`, `fast`, `fastest` or `all`), `QUORATE_BENCH_TRIALS` (default 30) per fault,
//! `QUORATE_BENCH_SEED`, `QUORATE_BENCH_PROGRAM`. Ends with 1 if two
//! workloads ever overlapped.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]
#![expect(clippy::disallowed_methods, reason = "real processes, set up by the environment")]

#[path = "../../src/cli/demo/processes.rs"]
mod processes;
mod rivals;
mod site;
mod tape;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use quorate::{
    clock::{BootClock, Clock, Moment},
    control::proto::{TransferRequest, control_client::ControlClient},
    dice::Dice,
    timing::Preset,
    workload::ticks,
};
use rustix::process::Signal;

use self::{
    site::{DEVICES, LOOK, PATIENCE, Site, Told},
    tape::Tape,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    DeviceKilled,
    DeviceSilent,
    SidecarKilled,
    Handover,
    ColdStart,
}

const FAULTS: [Fault; 5] =
    [Fault::DeviceKilled, Fault::DeviceSilent, Fault::SidecarKilled, Fault::Handover, Fault::ColdStart];

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::DeviceKilled => "device-killed",
            Fault::DeviceSilent => "device-silent",
            Fault::SidecarKilled => "sidecar-killed",
            Fault::Handover => "handover",
            Fault::ColdStart => "cold-start",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Fault::DeviceKilled => "owner's device killed: SIGKILL to sidecar, fencer and workload at once",
            Fault::DeviceSilent => {
                "owner's device falls silent: all three frozen at once, connections stay open, as in a power cut"
            }
            Fault::SidecarKilled => "owner's sidecar killed; its fencer stops the workload",
            Fault::Handover => "planned handover: gRPC Transfer to a named standby",
            Fault::ColdStart => "cold start: three new devices switched on at once",
        }
    }
}

/// From here on a trial is slow enough that the sidecars' logs are worth reading.
const SLOW: Duration = Duration::from_millis(1000);

/// What one trial measured.
struct Gap {
    from_fault: Duration,
    from_last_tick: Duration,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|a| a == "--bench") {
        println!("this benchmark runs by `cargo bench --bench takeover`");
        return ExitCode::SUCCESS;
    }
    let named = |f: &Fault| arguments.iter().any(|a| a == f.name());
    let mut faults: Vec<Fault> = FAULTS.into_iter().filter(named).collect();
    if faults.is_empty() {
        faults = FAULTS.to_vec();
    }
    let measured = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let mut clean = true;
            for timing in site::timings()? {
                clean &= runtime.block_on(measure(&faults, timing))?;
            }
            print!("\n{}", rivals::table(&["kill p50 / max", "stop p50", "overlap"]));
            Ok(clean)
        });
    match measured {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("the benchmark failed: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text:?} is not a number")),
        Err(_) => Ok(default),
    }
}

async fn measure(faults: &[Fault], timing: Preset) -> Result<bool> {
    let trials = number("QUORATE_BENCH_TRIALS", 30)?;
    let mut dice = Dice::new(number("QUORATE_BENCH_SEED", 1)?);
    let program = site::program().display().to_string();
    let command = [&*program, "tick-workload", "--file", "ticks"];
    let mut site = Site::start(&command, timing, Told::default())?;
    let mut tape = Tape::new(site.devices.iter().map(|d| d.home.join("ticks")));
    site.settled().await?;
    let (begun, pressure, mut told) = (BootClock.now(), cpu_pressure(), BootClock.now());
    let load_before = load();
    let mut gaps: Vec<(Fault, Vec<Gap>)> = faults.iter().map(|f| (*f, Vec::new())).collect();
    for n in 1..=trials {
        for (fault, gaps) in &mut gaps {
            let gap = match fault {
                Fault::ColdStart => cold_start(&command, timing).await,
                _ => trial(&mut site, &mut tape, *fault, &mut dice).await,
            };
            let gap = gap.with_context(|| format!("trial {n}, {}\n{}", fault.name(), site.last_words()))?;
            if gap.from_last_tick.max(gap.from_fault) > SLOW {
                let words = site.last_words();
                eprintln!(
                    "trial {n}, {} took {}\n{words}",
                    fault.name(),
                    show(gap.from_last_tick.max(gap.from_fault))
                );
            }
            if BootClock.now().since(told) > Duration::from_secs(3) {
                told = BootClock.now();
                eprintln!(
                    "trial {n}/{trials}, {}: {}",
                    fault.name(),
                    show(gap.from_last_tick.max(gap.from_fault))
                );
            }
            gaps.push(gap);
        }
    }
    tape.wind()?;
    let took = BootClock.now().since(begun);
    println!(
        "\nWithout a workload: three sidecars on loopback, timing {}, a workload that ticks every 5 ms",
        timing.name(),
    );
    println!("{program}");
    for (fault, gaps) in &gaps {
        println!("\n{} ({})", fault.text(), fault.name());
        println!("  {:<34} {:>5} {:>9} {:>9} {:>9} {:>9}", "", "n", "p50", "p90", "p99", "max");
        if *fault != Fault::ColdStart {
            row("from its last tick to the next", gaps.iter().map(|g| g.from_last_tick).collect());
        }
        row("from the fault to the next tick", gaps.iter().map(|g| g.from_fault).collect());
    }
    let runs: Vec<_> = tape.runs().cloned().collect();
    let overlaps = ticks::overlaps(&runs);
    let planned =
        gaps.iter().filter(|(f, _)| *f != Fault::ColdStart).map(|(_, gaps)| gaps.len()).sum::<usize>() + 1;
    println!("\noverlaps of two workloads: {} (in {} runs)", overlaps.len(), runs.len());
    for o in &overlaps {
        println!("  {:?} beside {:?} for {}", o.earlier, o.later, show(o.length));
    }
    println!("changes of owner that nobody asked for: {}", runs.len().saturating_sub(planned));
    println!(
        "machine: load {load_before} before, {} after; in {} % of the {} s some process waited for a CPU",
        load(),
        cpu_pressure().zip(pressure).map_or_else(
            || "?".into(),
            |(after, before)| ((after - before) * 100 / took.as_micros().max(1) as u64).to_string()
        ),
        took.as_secs(),
    );
    Ok(overlaps.is_empty())
}

/// Three devices that never ran, from the start of the first sidecar to the first tick.
async fn cold_start(command: &[&str], timing: Preset) -> Result<Gap> {
    let begun = BootClock.now();
    let site = Site::start(command, timing, Told::default())?;
    let mut tape = Tape::new(site.devices.iter().map(|d| d.home.join("ticks")));
    loop {
        tape.wind()?;
        if let Some(first) = tape.runs().map(|r| r.first).min() {
            return Ok(Gap { from_fault: first.since(begun), from_last_tick: Duration::ZERO });
        }
        if BootClock.now().since(begun) > PATIENCE {
            bail!("nobody owns\n{}", site.last_words());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn trial(site: &mut Site, tape: &mut Tape, fault: Fault, dice: &mut Dice) -> Result<Gap> {
    site.settled().await?;
    tokio::time::sleep(Duration::from_millis(200) + dice.up_to(Duration::from_millis(300))).await;
    let (owner, epoch) = site.settled().await?;
    tape.wind()?;
    let victims = site.processes(owner);
    let begun = BootClock.now();
    match fault {
        Fault::DeviceKilled => site.kill(owner, &victims),
        // The workload first, so that nothing is left to act on what it sees.
        Fault::DeviceSilent => {
            victims.iter().rev().for_each(|pid| processes::signal(*pid, Signal::STOP));
        }
        Fault::SidecarKilled => site.kill(owner, victims.get(..1).unwrap_or_default()),
        Fault::Handover => {
            let step = 1 + usize::from(dice.throw().is_multiple_of(2));
            transfer(site, owner, (owner + step) % DEVICES).await?;
        }
        Fault::ColdStart => bail!("a site that runs cannot be started"),
    }
    let (first, last) = next_run(tape, epoch).await?;
    match fault {
        Fault::DeviceSilent => site.kill(owner, &victims),
        Fault::DeviceKilled | Fault::SidecarKilled | Fault::Handover | Fault::ColdStart => {}
    }
    if fault != Fault::Handover {
        site.start_device(owner)?;
    }
    Ok(Gap { from_fault: first.since(begun), from_last_tick: first.since(last) })
}

/// Waits for the first tick under an epoch above `epoch`. Says when it was, and when the last one before was.
async fn next_run(tape: &mut Tape, epoch: u64) -> Result<(Moment, Moment)> {
    let begun = BootClock.now();
    loop {
        tape.wind()?;
        if let Some(first) = tape.runs().find(|r| r.epoch.get() > epoch).map(|r| r.first) {
            let last = tape.runs().filter(|r| r.epoch.get() <= epoch).map(|r| r.last).max();
            return last.map(|last| (first, last)).context("the old owner never ticked");
        }
        if BootClock.now().since(begun) > PATIENCE {
            bail!("nobody took over within {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn transfer(site: &Site, via: usize, to: usize) -> Result<()> {
    let (via, to) = site.devices.get(via).zip(site.devices.get(to)).context("there are three devices")?;
    let wish = TransferRequest { to: to.id.clone(), reason: "benchmark".into(), actor: "benchmark".into() };
    let reply = ControlClient::connect(via.control.clone()).await?.transfer(wish).await;
    reply.map(drop).map_err(|status| anyhow::anyhow!("no handover: {}", status.message()))
}

fn row(name: &str, mut durations: Vec<Duration>) {
    durations.sort_unstable();
    // The smallest value that at least this share of all does not exceed.
    let at = |percent: usize| {
        let rank = (durations.len() * percent).div_ceil(100).max(1);
        durations.get(rank - 1).map_or_else(|| "-".into(), |d| show(*d))
    };
    println!("  {name:<34} {:>5} {:>9} {:>9} {:>9} {:>9}", durations.len(), at(50), at(90), at(99), at(100));
}

fn show(d: Duration) -> String {
    format!("{:.1} ms", d.as_secs_f64() * 1000.0)
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().next().unwrap_or("?").to_owned()
}

/// For how many microseconds since boot some process was ready to run and had to wait, if the kernel counts that.
fn cpu_pressure() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/pressure/cpu").ok()?;
    text.lines().find(|l| l.starts_with("some"))?.rsplit_once("total=")?.1.parse().ok()
}
