//! The fault lab: real sidecars, real stores, real signals, a network that does what it should not, and random
//! sequences of faults with a seed. What counts is what the workloads recorded; `history.rs` is the judge.
//!
//! Sites run side by side, one thread each: three and five devices in network namespaces where the machine lets us,
//! and three on loopback behind proxies, which works everywhere. The lab says at its start which it has. A seed fixes
//! the sequence, not the machine's moments: a failure may need several replays.
//!
//! Not made here: steps of the wall clock (it has no namespace), clock rates, and the loss of what was written but not
//! synced. README.md beside the tests has the list of what is.

mod cards;
mod device;
mod faults;
mod history;
mod lan;
#[path = "../../src/cli/demo/processes.rs"]
#[expect(dead_code, reason = "shared with the demo and the benchmarks, which use all of it")]
mod processes;
mod proxies;
mod site;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use quorate::dice::Dice;

use self::{
    device::{Boot, Holder},
    faults::Can,
    lan::Lan,
    site::{Plan, Site},
};

/// Long enough that a machine which builds something else meanwhile, and a binary that is not optimised, can keep it.
const TIMING: &str = "[site.timing]\nheartbeat = \"100ms\"\nhold = \"400ms\"";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")))
}

/// Whether this machine lets us make namespaces with network cards and small disks; if not, why.
fn namespaces(runtime: &tokio::runtime::Runtime) -> std::io::Result<()> {
    let holder = Holder::new()?;
    let folder = tempfile::tempdir()?;
    holder.mount(folder.path())?;
    cards::connect(&[holder.pid()], &Lan::new(1).watch(), &mut Dice::new(0), runtime.handle())
}

/// Whether strace may attach to our processes.
fn stall() -> bool {
    let run = Command::new("strace").args(["-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}

/// The faults of one site, and what came of them.
struct Outcome {
    name: String,
    faults: Vec<String>,
    story: String,
    silences: BTreeMap<String, Vec<Duration>>,
}

fn play(mut plan: Plan, number: u8, folder: &Path, runtime: &tokio::runtime::Handle) -> Outcome {
    let folder = folder.join(&plan.name);
    let mut site = Site::new(&mut plan, number, &folder, runtime).expect("a site");
    site.run(&plan.steps);
    let evidence = &site.evidence;
    let mut faults = evidence.faults();
    faults.extend(site.oddities());
    let (stale, late) = evidence.stale();
    let runs = quorate::workload::ticks::runs(&evidence.ticks);
    let mut story = format!(
        "{}: {} devices, {} faults, {} runs of the workload, {stale} stale ticks of thawed machines (latest {late:?} after), \
         {} silences without a fault\n",
        plan.name,
        plan.devices,
        plan.steps.iter().map(|s| s.strikes.len()).sum::<usize>(),
        runs.len(),
        evidence.unexplained().len(),
    );
    let starved: Vec<_> = evidence.starved.iter().filter(|waited| **waited > history::LIMIT).collect();
    if !starved.is_empty() {
        let _ =
            writeln!(story, "  {} times waited in vain, not judged: the machine was starved", starved.len());
    }
    for gap in evidence.unexplained() {
        let _ = writeln!(story, "  {:?} without a fault, from {} on", gap.length, gap.before.at);
    }
    if !faults.is_empty() {
        for line in &site.notes {
            let _ = writeln!(story, "  {line}");
        }
        for run in runs {
            let _ = writeln!(story, "  epoch {} on {}: {} to {}", run.epoch, run.device, run.first, run.last);
        }
    }
    Outcome { name: plan.name, faults, story, silences: evidence.silences() }
}

fn table(outcomes: &[Outcome]) -> String {
    let mut kinds: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for (kind, silences) in outcomes.iter().flat_map(|o| &o.silences) {
        kinds.entry(kind).or_default().extend(silences);
    }
    let mut text = format!("{:<28} {:>5} {:>9} {:>9} {:>9}\n", "longest silence", "n", "p50", "p99", "max");
    for (kind, mut silences) in kinds {
        silences.sort_unstable();
        let at = |percent: usize| {
            let rank = (silences.len() * percent).div_ceil(100).max(1);
            silences.get(rank - 1).map_or_else(String::new, |d| format!("{} ms", d.as_millis()))
        };
        let _ = writeln!(text, "{kind:<28} {:>5} {:>9} {:>9} {:>9}", silences.len(), at(50), at(99), at(100));
    }
    text
}

#[test]
fn no_sequence_of_faults_breaks_a_promise() {
    let seed = number("QUORATE_LAB_SEED", u64::from(std::process::id()));
    let faults = usize::try_from(number("QUORATE_LAB_FAULTS", 200)).expect("small");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let spaces = namespaces(&runtime);
    let can = Can { namespaces: spaces.is_ok(), stall: stall() };
    let network = match &spaces {
        Ok(()) => "network namespaces, and proxied loopback".to_owned(),
        Err(e) => format!("proxied loopback only, and no full disk ({e})"),
    };
    let clocks = Boot::new(&mut Dice::new(seed)).is_ok();
    let boots = if clocks { "of its own for each device and boot" } else { "the same for all devices" };
    let preset = std::env::var("QUORATE_LAB_TIMING").ok();
    let timing = preset.map_or_else(|| TIMING.to_owned(), |name| format!("timing = \"{name}\""));
    let stalls = if can.stall { "slowed by strace" } else { "never slow (no strace)" };
    eprintln!("lab: seed {seed}, {faults} faults, {network}; disks {stalls}; boot clock {boots}");

    let mut dice = Dice::new(seed);
    let sites = [("cards-3", 3, true), ("cards-5", 5, true), ("proxies-3", 3, false)];
    let plans = sites.map(|(name, devices, wants)| {
        let can = Can { namespaces: can.namespaces && wants, ..can };
        let steps = faults::sequence(&mut dice.split(), faults.div_ceil(sites.len()), devices, can);
        let (timing, dice) = (timing.clone(), dice.split());
        Plan { name: name.into(), devices, namespaces: can.namespaces, clocks, timing, dice, steps }
    });
    let folder = tempfile::Builder::new().prefix("quorate-lab-").tempdir().expect("a folder");
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let (path, handle) = (folder.path(), runtime.handle());
        let playing: Vec<_> = (0..)
            .zip(plans)
            .map(|(number, plan)| scope.spawn(move || play(plan, number, path, handle)))
            .collect();
        playing.into_iter().map(|site| site.join().expect("a site that ends")).collect()
    });
    for outcome in &outcomes {
        eprint!("{}", outcome.story);
    }
    eprint!("{}", table(&outcomes));
    if outcomes.iter().any(|o| !o.faults.is_empty()) {
        let kept: PathBuf = folder.keep();
        let mut text = String::new();
        for outcome in outcomes {
            outcome.faults.iter().for_each(|fault| text += &format!("{}: {fault}\n", outcome.name));
        }
        panic!(
            "{text}all logs and ticks are in {}; again: QUORATE_LAB_SEED={seed} QUORATE_LAB_FAULTS={faults} \
             cargo test --test suite lab::no_sequence -- --nocapture",
            kept.display()
        );
    }
}
