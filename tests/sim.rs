//! `cargo sim`: many simulated sites in random trouble, on all cores; or one of them, told in full.
#![expect(clippy::expect_used, clippy::disallowed_methods, clippy::print_stdout, clippy::print_stderr)]
#![expect(unreachable_pub, reason = "modules of one binary")]

#[path = "sweep/hub.rs"]
mod hub;
#[path = "sweep/orders.rs"]
mod orders;
#[path = "sweep/pair.rs"]
mod pair;
mod promise;
#[expect(dead_code, reason = "the stories use the rest")]
mod stage;
#[path = "sweep/trial.rs"]
mod trial;

use std::{
    cell::RefCell,
    io::{IsTerminal as _, Write as _},
    panic::AssertUnwindSafe,
    process::{Command, ExitCode},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use clap::Parser;
use serde_json::json;
use trial::{Outcome, Trial};

/// Simulates whole sites in random trouble and checks every promise at every simulated millisecond.
///
/// Each seed is one site: two, three or five devices and perhaps a witness, one of the timing presets, clocks that drift,
/// and trouble of all kinds for --seconds; then the site's trouble ends and an owner is demanded within the bound. The hub's goes on
/// for a while, and the ownership must not move; when it ends too, all twins must say what the record says. Exit code 0 if every promise was kept, 1 if not.
#[derive(Parser)]
#[command(name = "cargo sim")]
struct Options {
    /// How many seeds.
    #[arg(long, default_value_t = 100, env = "QUORATE_SIM_SEEDS")]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How long the trouble lasts, in simulated seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Runs this seed alone, and prints what was done to the site and the product's log.
    #[arg(long, value_name = "SEED")]
    replay: Option<u64>,
    /// Runs the first seed so often, each time in a process of its own, and demands the same event hash.
    #[arg(long, value_name = "TIMES")]
    same: Option<u64>,
    /// Runs each seed as a pair instead: the same losses and handovers with a hub in trouble and with one that is well, and demands
    /// the same ownerships.
    #[arg(long)]
    pairs: bool,
    /// Prints the event hash of the first seed, the lines of the product's log included, and nothing else.
    #[arg(long)]
    hash: bool,
    /// How many at the same time; as many as there are cores if not given.
    #[arg(long)]
    threads: Option<usize>,
    /// Prints the result as JSON.
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn trouble(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
    }

    fn replay_command(&self, seed: u64) -> String {
        match self.pairs {
            true => format!("cargo sim --pairs --from {seed} --seeds 1"),
            false => format!("cargo sim --replay {seed} --seconds {}", self.seconds),
        }
    }
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// One trial that may fail.
struct Run {
    seed: u64,
    simulated: Duration,
    bound: Duration,
    told: Vec<String>,
    outcome: Result<Outcome, String>,
}

fn run(seed: u64, trouble: Duration) -> Run {
    let mut trial = Trial::new(seed);
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| trial.run(trouble)))
        .map_err(|_| PANIC.with(|text| text.borrow().clone()));
    let (simulated, bound) = (trial.stage.sim.elapsed(), trial.bound());
    Run { seed, simulated, bound, told: std::mem::take(&mut trial.told), outcome }
}

/// One site compared with itself; what takes long there is the twins.
fn run_pair(seed: u64) -> Run {
    let compared = std::panic::catch_unwind(AssertUnwindSafe(|| pair::compare(seed)))
        .unwrap_or_else(|_| Err(PANIC.with(|text| text.borrow().clone())));
    let mut told = Vec::new();
    let outcome = compared.map(|story| {
        told = story.told;
        Outcome {
            recovery: Duration::ZERO,
            without: Duration::ZERO,
            ownerships: story.ledger.len(),
            flags: story.flags,
            rollbacks: story.rollbacks,
            hash: 0,
        }
    });
    Run { seed, simulated: Duration::ZERO, bound: Duration::from_secs(1), told, outcome }
}

/// CPU seconds that this process has used.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The fields behind the name; utime and stime are the 14th and 15th of all, in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let hundredths = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or_default();
    (hundredths(11) + hundredths(12)) / 100.0
}

fn all(options: &Options) -> Vec<Run> {
    let (next, stop) = (AtomicU64::new(options.from), AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel();
    let begun = Instant::now();
    let mut runs = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..options.threads() {
            let (sender, next, stop) = (sender.clone(), &next, &stop);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= options.from + options.seeds || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let run = if options.pairs { run_pair(seed) } else { run(seed, options.trouble()) };
                    if sender.send(run).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut shown = Instant::now();
        for run in receiver {
            if run.outcome.is_err() && !options.json {
                tell(&run, options);
            }
            runs.push(run);
            let every = Duration::from_secs(if std::io::stderr().is_terminal() { 1 } else { 30 });
            if begun.elapsed() > Duration::from_secs(2) && shown.elapsed() > every {
                shown = Instant::now();
                let failed = runs.iter().filter(|r| r.outcome.is_err()).count();
                eprintln!(
                    "{} of {} seeds, {failed} failed, {} s",
                    runs.len(),
                    options.seeds,
                    begun.elapsed().as_secs()
                );
            }
        }
    });
    runs.sort_by_key(|run| run.seed);
    runs
}

fn tell(run: &Run, options: &Options) {
    let error = run.outcome.as_ref().err().map_or("", String::as_str);
    println!("seed {} failed: {error}\n{}", run.seed, run.told.join("\n"));
    println!("repeat it: {}\n", options.replay_command(run.seed));
}

/// The longest of something, and whose it was.
fn longest(runs: &[Run], of: impl Fn(&Outcome) -> Duration) -> (Duration, u64) {
    runs.iter().filter_map(|r| Some((of(r.outcome.as_ref().ok()?), r.seed))).max().unwrap_or_default()
}

fn sweep(options: &Options) -> bool {
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let runs = all(options);
    let (took, cpu) = (begun.elapsed(), cpu_seconds() - cpu);
    let failed: Vec<u64> = runs.iter().filter(|r| r.outcome.is_err()).map(|r| r.seed).collect();
    let hours = runs.iter().map(|r| r.simulated).sum::<Duration>().as_secs_f64() / 3600.0;
    let ownerships: usize = runs.iter().filter_map(|r| Some(r.outcome.as_ref().ok()?.ownerships)).sum();
    let (recovery, without) = (longest(&runs, |o| o.recovery), longest(&runs, |o| o.without));
    let flags = longest(&runs, |o| o.flags);
    let mut all_flags: Vec<Duration> =
        runs.iter().filter_map(|r| Some(r.outcome.as_ref().ok()?.flags)).collect();
    all_flags.sort();
    let middle = all_flags.get(all_flags.len() / 2).copied().unwrap_or_default();
    let rollbacks: usize = runs.iter().filter_map(|r| Some(r.outcome.as_ref().ok()?.rollbacks)).sum();
    let share = |run: &Run| Some(run.outcome.as_ref().ok()?.recovery.as_secs_f64() / run.bound.as_secs_f64());
    let nearest = runs.iter().filter_map(share).fold(0.0, f64::max);
    if options.json {
        let failures = runs.iter().filter_map(|r| {
            let error = r.outcome.as_ref().err()?;
            Some(json!({ "seed": r.seed, "error": error, "told": r.told, "replay": options.replay_command(r.seed) }))
        });
        println!(
            "{}",
            json!({
                "seeds": runs.len(), "from": options.from, "seconds": options.seconds, "failed": failed,
                "failures": failures.collect::<Vec<_>>(), "ownerships": ownerships, "site_hours": hours,
                "cpu_seconds": cpu, "site_hours_per_cpu_second": hours / cpu, "wall_seconds": took.as_secs_f64(),
                "slowest_recovery_ms": recovery.0.as_millis(), "slowest_recovery_seed": recovery.1,
                "longest_without_owner_ms": without.0.as_millis(), "longest_without_owner_seed": without.1,
                "nearest_to_bound": nearest, "hub_rollbacks": rollbacks, "twins_right_ms": middle.as_millis(),
                "twins_right_slowest_ms": flags.0.as_millis(), "twins_right_slowest_seed": flags.1,
            })
        );
    } else {
        println!(
            "{} seeds from {}: {} failed; {ownerships} ownerships in {hours:.2} site-hours; {:.3} site-hours per CPU \
             second ({cpu:.1} s of CPU, {:.1} s of wall time)",
            runs.len(),
            options.from,
            failed.len(),
            hours / cpu,
            took.as_secs_f64()
        );
        println!(
            "after all trouble: an owner within {:?} at the latest (seed {}), {:.0} % of its bound; able and without an \
             owner: {:?} at the longest (seed {})",
            recovery.0,
            recovery.1,
            nearest * 100.0,
            without.0,
            without.1
        );
        println!(
            "after all trouble of the hub, {rollbacks} rollbacks among it: all twins right within {middle:?} in the \
             middle, {:?} at the latest (seed {})",
            flags.0, flags.1
        );
        for seed in &failed {
            println!("failed: {}", options.replay_command(*seed));
        }
    }
    failed.is_empty()
}

fn hash(options: &Options) -> Result<u64, String> {
    stage::log::into_the_hash();
    run(options.from, options.trouble()).outcome.map(|outcome| outcome.hash)
}

/// The same seed in many processes: other addresses, other random states, other neighbours.
fn same(options: &Options, times: u64) -> bool {
    let program = std::env::current_exe().expect("this program");
    let (next, hashes) = (AtomicU64::new(0), std::sync::Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..options.threads() {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < times {
                    let done = Command::new(&program)
                        .args(["--hash", "--from", &options.from.to_string()])
                        .args(["--seconds", &options.seconds.to_string()])
                        .output()
                        .expect("starts");
                    let text = String::from_utf8_lossy(&done.stdout).trim().to_owned();
                    hashes.lock().expect("nobody panics holding it").push(text);
                }
            });
        }
    });
    let mut hashes = hashes.into_inner().expect("nobody panics holding it");
    hashes.sort();
    hashes.dedup();
    println!(
        "seed {} in {times} processes: {} event hash(es): {}",
        options.from,
        hashes.len(),
        hashes.join(", ")
    );
    hashes.len() == 1 && !hashes[0].is_empty()
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        PANIC.with(|panic| *panic.borrow_mut() = text);
    }));
    let kept = if let Some(seed) = options.replay {
        options.from = seed;
        stage::log::to_stdout();
        let run = run(seed, options.trouble());
        println!("{}", run.told.join("\n"));
        match &run.outcome {
            Ok(outcome) => println!("every promise was kept: {outcome:?}, bound {:?}", run.bound),
            Err(error) => println!("seed {seed} failed: {error}"),
        }
        run.outcome.is_ok()
    } else if options.hash {
        match hash(&options) {
            Ok(hash) => println!("{hash:016x}"),
            Err(error) => eprintln!("{error}"),
        }
        true
    } else if let Some(times) = options.same {
        same(&options, times)
    } else {
        sweep(&options)
    };
    let _ = std::io::stdout().flush();
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
