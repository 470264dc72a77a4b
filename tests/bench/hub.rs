//! How soon the cloud knows, and what it costs the hub: `cargo bench --bench hub [-- WHAT ...]`.
//!
//! `back`: the hub is away for a while, the ownership moves meanwhile, and the hub comes back; how long until the last flag is
//! right? `failover`: how often is the hub asked when the ownership moves? Both with three real sidecars on loopback and the
//! emulated hub over TLS in this process, whose own twins and counts are what is looked at. While it is away it takes connections
//! and ends them at once. `device-twin`, `module-twin`, `edge-hub` and `both` name a mirror; without a name it is all of them.
//! `region`: ten thousand simulated sites return to one S1 hub (`region.rs`).
//!
//! `QUORATE_BENCH_TRIALS` (default 30) per length of an absence, and per way in which the ownership moves;
//! `QUORATE_BENCH_SITES` (default 10000), `QUORATE_BENCH_TIMING` (a preset), `QUORATE_BENCH_SEED`, `QUORATE_BENCH_PROGRAM`. Ends with 1 if a target is missed.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]
#![expect(clippy::disallowed_methods, reason = "real processes, set up by the environment")]

mod cloud;
#[path = "../../src/cli/demo/processes.rs"]
mod processes;
mod region;
mod site;

use std::{fs, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use quorate::{
    clock::{BootClock, Clock, Moment},
    control::proto::{TransferRequest, control_client::ControlClient},
    dice::Dice,
};

use self::{
    cloud::{Asked, Cloud, Mirror},
    region::Region,
    site::{DEVICES, PATIENCE, Site},
};

/// How long the hub is away, and what part of the trials is that long.
const AWAY: [(Duration, u64); 4] = [
    (Duration::from_secs(1), 1),
    (Duration::from_secs(3), 1),
    (Duration::from_secs(10), 1),
    (Duration::from_secs(60), 5),
];
/// Within this time of the hub's return the flags shall be right. An edgeHub takes its own time: it pushes every five seconds at
/// most.
const BACK: Duration = Duration::from_secs(1);
/// A move of the ownership shall cost a site's device twins no more than this.
const REQUESTS: u64 = 4;
/// For so long after a move is counted what it costs: what a module says less urgently follows within it.
const AFTERWARDS: Duration = Duration::from_secs(10);
/// All sites shall be right within so many times what the hub needs, and this part of its answers at most be refusals.
const STRETCH: f64 = 1.2;
const REFUSED: f64 = 0.01;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|a| a == "--bench") {
        println!("this benchmark runs by `cargo bench --bench hub`");
        return ExitCode::SUCCESS;
    }
    let named = |word: &str| arguments.iter().any(|a| a == word);
    let mirrors: Vec<Mirror> = Mirror::ALL.into_iter().filter(|mirror| named(mirror.word())).collect();
    let mirrors = if mirrors.is_empty() { Mirror::ALL.to_vec() } else { mirrors };
    let all = !["back", "failover", "region"].into_iter().any(named);
    let wants = |what: &str| all || named(what);
    let measured = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let mut good = true;
            for mirror in &mirrors {
                if wants("back") {
                    good &= runtime.block_on(back(*mirror))?;
                }
                if wants("failover") {
                    good &= runtime.block_on(failover(*mirror))?;
                }
            }
            drop(runtime);
            Ok(good & (!wants("region") || regions()?))
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

fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

/// A hub and a site that mirrors into it, at rest.
struct Stand {
    // First, so that the sidecars end before their hub.
    site: Site,
    cloud: Cloud,
    dice: Dice,
}

/// How the ownership moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    /// The owner's sidecar is killed, and started again afterwards.
    Killed,
    /// A person asks for it.
    Transfer,
}

impl Move {
    fn text(self) -> &'static str {
        match self {
            Move::Killed => "the owner's sidecar is killed and started again",
            Move::Transfer => "planned handover",
        }
    }
}

impl Stand {
    async fn new(mirror: Mirror) -> Result<Stand> {
        let cloud = Cloud::start(mirror)?;
        let dice = Dice::new(number("QUORATE_BENCH_SEED", 1)?);
        let timing = *site::timings()?.first().context("one timing")?;
        let site = Site::start(&["sleep", "1000000"], timing, cloud.told()?)?;
        let mut stand = Stand { site, cloud, dice };
        stand.rests().await?;
        Ok(stand)
    }

    /// Waits until the site is at rest and the flags are right.
    async fn rests(&mut self) -> Result<(usize, u64)> {
        let (owner, epoch) = self.site.settled().await?;
        self.agrees(owner, epoch).await?;
        Ok((owner, epoch))
    }

    async fn agrees(&self, owner: usize, epoch: u64) -> Result<Moment> {
        let agreed = self.cloud.agrees(owner, epoch).await;
        agreed.with_context(|| format!("after epoch {epoch}\n{}", self.site.last_words()))
    }

    /// Moves the ownership and waits until the site is at rest again. Says when it was moved, who owns now, and the epoch.
    async fn moves(&mut self, how: Move, owner: usize) -> Result<(Moment, usize, u64)> {
        let mut at = BootClock.now();
        match how {
            Move::Killed => {
                let all = self.site.processes(owner);
                self.site.kill(owner, all.get(..1).unwrap_or_default());
                self.site.start_device(owner)?;
            }
            Move::Transfer => {
                let to = (owner + 1 + usize::from(self.dice.throw().is_multiple_of(2))) % DEVICES;
                let (via, to) = (self.site.devices.get(owner), self.site.devices.get(to));
                let (via, to) = via.zip(to).context("there are three devices")?;
                let wish = TransferRequest {
                    to: to.id.clone(),
                    reason: "benchmark".into(),
                    actor: "benchmark".into(),
                };
                let mut client = ControlClient::connect(via.control.clone()).await?;
                let begun = at;
                // On a busy machine a device may be found unfit for a while.
                while let Err(status) = client.transfer(wish.clone()).await {
                    let waited = BootClock.now().since(begun);
                    anyhow::ensure!(waited < PATIENCE, "no handover: {}", status.message());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    at = BootClock.now();
                }
            }
        }
        let (owner, epoch) = self.site.settled().await?;
        Ok((at, owner, epoch))
    }
}

impl Stand {
    /// The hub is away for a while, and the ownership moves meanwhile. How long the flags take from its return.
    async fn returns(&mut self, away: Duration, how: Move) -> Result<Duration> {
        let (owner, epoch) = self.rests().await?;
        let gone = BootClock.now();
        self.cloud.away(true);
        tokio::time::sleep(self.dice.up_to(away / 3)).await;
        let (_, owner, newer) = self.moves(how, owner).await?;
        anyhow::ensure!(newer > epoch, "the ownership did not move");
        // Anywhere between two tries of whoever waits for the hub.
        let rest = away + self.dice.up_to(Duration::from_secs(1));
        tokio::time::sleep(rest.saturating_sub(BootClock.now().since(gone))).await;
        let back = BootClock.now();
        self.cloud.away(false);
        let took = self.agrees(owner, newer).await?.since(back);
        if took > BACK {
            eprintln!("away for {} s, {}: {}", away.as_secs(), how.text(), ms(&took));
        }
        Ok(took)
    }
}

/// The hub comes back.
async fn back(mirror: Mirror) -> Result<bool> {
    let trials = number("QUORATE_BENCH_TRIALS", 30)?;
    let mut stand = Stand::new(mirror).await?;
    let before = load();
    let mut took: Vec<(Duration, Vec<Duration>)> = AWAY.iter().map(|(away, _)| (*away, Vec::new())).collect();
    let mut failed = Ok(());
    'trials: for trial in 0..trials {
        for ((away, seldom), (_, took)) in AWAY.iter().zip(&mut took) {
            if trial % seldom > 0 {
                continue;
            }
            let how = if trial.is_multiple_of(2) { Move::Transfer } else { Move::Killed };
            match stand.returns(*away, how).await {
                Ok(right) => took.push(right),
                // What was measured until then is shown all the same.
                Err(why) => {
                    failed = Err(why);
                    break 'trials;
                }
            }
        }
        eprintln!("trial {}/{trials}", trial + 1);
    }
    println!(
        "\nFrom the hub's return to the last right flag, the ownership moved meanwhile: {}",
        mirror.text()
    );
    println!("  {:<22} {:>5} {:>11} {:>11} {:>11} {:>11}", "", "n", "p50", "p90", "p99", "max");
    for (away, took) in &took {
        row(&format!("away for {} to {} s", away.as_secs(), away.as_secs() + 1), took.clone(), ms);
    }
    let all: Vec<Duration> = took.into_iter().flat_map(|(_, took)| took).collect();
    let worst = percentile(&all, 99);
    row("all", all, ms);
    told(&before);
    failed.map(|()| mirror.edges() || worst <= Some(BACK))
}

/// The ownership moves while the hub is there.
async fn failover(mirror: Mirror) -> Result<bool> {
    let trials = number("QUORATE_BENCH_TRIALS", 30)?;
    let mut stand = Stand::new(mirror).await?;
    let before = load();
    let mut good = true;
    println!("\nWhat the hub is asked for when the ownership moves: {}", mirror.text());
    println!("  {:<22} {:>5} {:>11} {:>11} {:>11} {:>11}", "", "n", "p50", "p90", "p99", "max");
    for how in [Move::Killed, Move::Transfer] {
        let (mut took, mut until_right, mut all): (Vec<Duration>, Vec<Asked>, Vec<Asked>) =
            Default::default();
        for _ in 0..trials {
            let (owner, _) = stand.rests().await?;
            // What the site notes of the twins, and what modules say less urgently, is over by then.
            tokio::time::sleep(Duration::from_secs(5) + stand.dice.up_to(Duration::from_secs(1))).await;
            let before = stand.cloud.asked();
            let (at, owner, epoch) = stand.moves(how, owner).await?;
            let right = stand.agrees(owner, epoch).await?;
            until_right.push(stand.cloud.asked().since(before));
            took.push(right.since(at));
            tokio::time::sleep(AFTERWARDS).await;
            all.push(stand.cloud.asked().since(before));
        }
        println!(" {}", how.text());
        row("at rest, flags right", took, ms);
        let count = |asked: &[Asked], of: fn(Asked) -> u64| asked.iter().map(|a| of(*a)).collect::<Vec<_>>();
        row("reads and updates", count(&all, Asked::messages), ToString::to_string);
        row("  until right", count(&until_right, Asked::messages), ToString::to_string);
        row("  reads", count(&all, |a| a.reads), ToString::to_string);
        row("  updates", count(&all, |a| a.updates), ToString::to_string);
        row("new connections", count(&all, |a| a.connections), ToString::to_string);
        good &= mirror != Mirror::Device || all.iter().all(|asked| asked.messages() <= REQUESTS);
    }
    told(&before);
    Ok(good)
}

fn regions() -> Result<bool> {
    let sites = u32::try_from(number("QUORATE_BENCH_SITES", 10_000)?)?;
    let seed = number("QUORATE_BENCH_SEED", 1)?;
    let s = Duration::from_secs;
    println!(
        "\n{sites} simulated sites of three devices at one S1 hub (100 twin reads and 50 updates a second), seed {seed}"
    );
    println!(
        "  {:<44} {:>8} {:>8} {:>6} {:>9} {:>9} {:>8} {:>10}",
        "", "at least", "all", "ratio", "median", "asked", "refused", "most, one"
    );
    let mut good = true;
    for (away, failing, moved, counts) in [
        (s(10), false, 100, true),
        (s(60), false, 100, true),
        (s(600), false, 100, true),
        (s(3600), false, 100, true),
        (s(3600), false, 1, false),
        (s(600), true, 100, false),
        (s(0), false, 100, false),
    ] {
        let came = region::play(&Region { sites, away, failing, moved, seed }).map_err(|why| anyhow!(why))?;
        let how = match (away.is_zero(), failing) {
            (true, _) => "not away, all owners move within a second".to_owned(),
            (_, true) => format!("answers 503 for {} s", away.as_secs()),
            _ => format!("unreachable for {} s", away.as_secs()),
        };
        let ratio = came.all().as_secs_f64() / came.least.as_secs_f64();
        println!(
            "  {:<44} {:>6.0} s {:>6.0} s {ratio:>6.2} {:>7.0} s {:>9} {:>6.2} % {:>10}",
            format!("{how}, {moved} % moved"),
            came.least.as_secs_f64(),
            came.all().as_secs_f64(),
            percentile(&came.took, 50).unwrap_or_default().as_secs_f64(),
            came.asked,
            came.refused_part() * 100.0,
            came.most_refused,
        );
        good &= !counts || ratio <= STRETCH && came.refused_part() < REFUSED;
    }
    Ok(good)
}

fn told(before: &str) {
    println!("  {}; machine: load {before} before, {} after", site::program().display(), load());
}

/// The smallest value that at least this share of all does not exceed.
fn percentile<T: Copy + Ord>(values: &[T], percent: usize) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied()
}

fn row<T: Copy + Ord>(name: &str, values: Vec<T>, show: impl Fn(&T) -> String) {
    let at = |percent| percentile(&values, percent).map_or_else(|| "-".into(), |value| show(&value));
    println!("  {name:<22} {:>5} {:>11} {:>11} {:>11} {:>11}", values.len(), at(50), at(90), at(99), at(100));
}

fn ms(duration: &Duration) -> String {
    format!("{:.0} ms", duration.as_secs_f64() * 1000.0)
}
