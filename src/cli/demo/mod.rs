//! `quorate demo`: the whole story on one bare machine, with real processes, sockets, disks and TLS.
//!
//! Five chapters: a site elects an owner; the owner's device dies; the hub is cut off while the next owner's sidecar
//! dies; the hub comes back; a planned handover. Gaps and overlaps come from the workload's own tick records on the
//! boot clock, not from what the sidecars believe. The demo only looks and breaks; it never helps.

mod processes;
mod site;
mod tell;

use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    site::{DemoSite, Trouble},
    tell::Teller,
};
use super::{DONE, NO, REFUSED, Stop, client};
use crate::{config::Environment, dice::Dice, workload::ticks};

/// Try it out: a whole site and an IoT Hub emulator on this machine
///
/// Starts real processes on loopback, kills the owner, cuts the hub off and back,
/// hands over, and prints what happens with measured gaps. The exit code is 0 only
/// if no two workloads ever overlapped and the twins converged.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate demo\n  quorate demo --devices 5 --keep\n  quorate demo --json"
)]
pub(super) struct Args {
    /// Leave the site running afterwards, to play with, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
    /// How many sidecars
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
    pub devices: u8,
    /// Repeat the random choices of an earlier run
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Print one JSON object per event, and a last line with the verdict
    #[arg(long)]
    pub json: bool,
}

/// How long the workload runs undisturbed between two chapters.
const CALM: Duration = Duration::from_millis(1500);
/// How long anything in the story may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(20);
/// So often the handover is tried.
const HANDOVERS: u32 = 3;

pub(super) async fn run(args: Args, environment: &Environment) -> Result<u8, Stop> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| failed(&e.to_string()))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| failed(&e.to_string()))?;
    let mut teller = Teller::new(args.json, super::colour(environment));
    let seed = args.seed.unwrap_or_else(|| u64::from(std::process::id()));
    let mut site = DemoSite::prepare(usize::from(args.devices)).map_err(|e| failed(&e))?;
    let story = async {
        let told = story(&mut site, &mut teller, Dice::new(seed)).await;
        if args.keep && told.is_ok() {
            keep(&site, &mut teller);
            std::future::pending::<()>().await;
        }
        told
    };
    let (told, interrupted) = tokio::select! {
        told = story => (told, false),
        _ = interrupt.recv() => (Err("stopped by Ctrl-C".to_owned()), true),
        _ = terminate.recv() => (Err("stopped by SIGTERM".to_owned()), true),
    };
    // Why it went wrong stands in the logs, so they outlive a failure.
    let keep_folder = !interrupted && told != Ok(true);
    site.tear_down(keep_folder).await;
    match told {
        Ok(true) => Ok(DONE),
        Ok(false) => {
            super::tell(&format!("quorate: {}", logs(&site)));
            Ok(NO)
        }
        // After the story has been told, Ctrl-C is how it ends.
        Err(_) if teller.judged() == Some(true) => Ok(DONE),
        Err(why) if interrupted => Err(trouble(&why, "nothing is left behind".into())),
        Err(why) => Err(trouble(&why, format!("run it again; {}", logs(&site)))),
    }
}

fn logs(site: &DemoSite) -> String {
    format!(
        "its logs and tick records stay in {}; remove it when you have seen them",
        site.folder().display()
    )
}

fn failed(why: &str) -> Stop {
    trouble(why, "this machine must let it make folders, listen on loopback and start processes".into())
}

fn trouble(why: &str, hint: String) -> Stop {
    client::Trouble { message: format!("the demo did not get to its end: {why}"), hint, code: REFUSED }.into()
}

async fn story(site: &mut DemoSite, teller: &mut Teller, mut dice: Dice) -> Result<bool, String> {
    teller.chapter("A site elects one owner");
    site.start_hub().await?;
    teller.line(
        "hub",
        json!({"address": site.hub_address()}),
        &format!("an IoT Hub (emulated, real TLS) at {}", site.hub_address()),
    );
    for n in 0..site.devices.len() {
        site.start_device(n)?;
        let (id, http, control) = (&site.devices[n].id, site.http(n), site.control(n));
        let fact = json!({"device": id, "status_page": http, "control": control});
        teller.line("sidecar", fact, &format!("{id}: sidecar started, status page {http}"));
    }
    let (mut owner, epoch) = site.next_owner(0, PATIENCE).await?;
    owns(site, teller, owner, epoch);
    let mut converged = twins_follow(site, teller, owner, epoch).await?;

    tokio::time::sleep(CALM).await;
    teller.chapter("The owner's device dies");
    let lost = owner;
    site.kill_device(lost);
    teller.line(
        "killed",
        json!({"device": site.devices[lost].id}),
        &format!("{}: power gone (sidecar, fencer and workload killed at once)", site.devices[lost].id),
    );
    let (next, epoch) = site.next_owner(epoch, PATIENCE).await?;
    let silent_loss_gap = gap(site, epoch)?;
    owner = next;
    took_over(site, teller, owner, epoch, silent_loss_gap);
    converged &= twins_follow(site, teller, owner, epoch).await?;
    site.start_device(lost)?;
    site.reachable(lost, PATIENCE).await?;
    teller.line(
        "returned",
        json!({"device": site.devices[lost].id}),
        &format!("{}: back as a standby, deposes nobody", site.devices[lost].id),
    );

    tokio::time::sleep(CALM).await;
    teller.chapter("The hub is cut off, and the owner's sidecar dies");
    site.trouble(Trouble::Unreachable).await?;
    teller.line("hub_cut", json!({}), "the hub cannot be reached any more");
    let lost = owner;
    site.kill_sidecar(lost);
    teller.line(
        "killed",
        json!({"device": site.devices[lost].id}),
        &format!("{}: sidecar killed; its fencer stops the workload", site.devices[lost].id),
    );
    let (next, epoch) = site.next_owner(epoch, PATIENCE).await?;
    owner = next;
    let crash_gap = gap(site, epoch)?;
    took_over(site, teller, owner, epoch, crash_gap);
    site.condition(owner, "hub.unreachable", PATIENCE).await?;
    teller.line("condition", json!({"device": site.devices[owner].id, "condition": "hub.unreachable"}), "the site goes on without the hub; the status says hub.unreachable, the twins still show the epoch before");

    tokio::time::sleep(CALM).await;
    teller.chapter("The hub comes back");
    site.trouble(Trouble::None).await?;
    teller.line("hub_back", json!({}), "the hub can be reached again");
    converged &= twins_follow(site, teller, owner, epoch).await?;
    site.start_device(lost)?;
    site.reachable(lost, PATIENCE).await?;

    tokio::time::sleep(CALM).await;
    teller.chapter("A planned handover");
    let standbys: Vec<usize> = (0..site.devices.len()).filter(|n| *n != owner).collect();
    let target = standbys[usize::try_from(dice.throw() % standbys.len() as u64).unwrap_or(0)];
    let (mut epoch, mut handover_gap) = (epoch, Duration::ZERO);
    for _ in 0..HANDOVERS {
        site.fit_for_handover(owner, target, PATIENCE).await?;
        teller.line(
            "transfer",
            json!({"to": site.devices[target].id}),
            &format!("quorate transfer --to {}", site.devices[target].id),
        );
        let taken = site.transfer(owner, target).await?;
        (owner, epoch) = site.next_owner(epoch, PATIENCE).await?;
        handover_gap = gap(site, epoch)?;
        took_over(site, teller, owner, epoch, handover_gap);
        if taken {
            break;
        }
    }
    converged &= twins_follow(site, teller, owner, epoch).await?;
    let moved = owner == target;
    if !moved {
        teller.line("wrong_owner", json!({}), "the handover ended on another device than asked for");
    }

    tokio::time::sleep(CALM).await;
    let ticks = site.ticks()?;
    let runs = ticks::runs(&ticks);
    let overlap: Duration = ticks::overlaps(&runs).iter().map(|o| o.length).sum();
    let overlapped = !ticks::overlaps(&runs).is_empty();
    let ok = !overlapped && converged && moved;
    teller.verdict(&tell::Verdict {
        ok,
        overlap,
        overlapped,
        converged,
        silent_loss_gap,
        crash_gap,
        handover_gap,
        ticks: ticks.len(),
        runs: runs.len(),
    });
    Ok(ok)
}

/// From the last tick anywhere before `epoch` to the first tick under it.
fn gap(site: &DemoSite, epoch: u64) -> Result<Duration, String> {
    let runs = ticks::runs(&site.ticks()?);
    let first = runs.iter().find(|r| r.epoch.get() == epoch).map(|r| r.first);
    let last = runs.iter().filter(|r| r.epoch.get() < epoch).map(|r| r.last).max();
    first
        .zip(last)
        .map(|(first, last)| first.since(last))
        .ok_or_else(|| format!("epoch {epoch} left no ticks"))
}

fn owns(site: &DemoSite, teller: &mut Teller, owner: usize, epoch: u64) {
    let id = &site.devices[owner].id;
    teller.line(
        "owner",
        json!({"device": id, "epoch": epoch}),
        &format!("{id} owns, epoch {epoch}: the workload runs there and only there"),
    );
}

fn took_over(site: &DemoSite, teller: &mut Teller, owner: usize, epoch: u64, gap: Duration) {
    let id = &site.devices[owner].id;
    let ms = gap.as_millis();
    teller.line(
        "owner",
        json!({"device": id, "epoch": epoch, "gap_ms": ms}),
        &format!("{id} owns, epoch {epoch}: no workload ran for {ms} ms"),
    );
}

async fn twins_follow(
    site: &DemoSite,
    teller: &mut Teller,
    owner: usize,
    epoch: u64,
) -> Result<bool, String> {
    let begun = teller.elapsed();
    let flags = site.twins(owner, epoch, PATIENCE).await?;
    let took = teller.elapsed().saturating_sub(begun).as_millis();
    let shown: Vec<String> = flags
        .iter()
        .map(|(id, flag)| match flag {
            Some((true, epoch)) => format!("{id} ACTIVE (epoch {epoch})"),
            Some((false, _)) => format!("{id} standby"),
            None => format!("{id} -"),
        })
        .collect();
    let right = flags.iter().enumerate().all(|(n, (_, flag))| *flag == Some((n == owner, epoch)));
    let facts: Vec<_> = flags
        .iter()
        .map(|(id, flag)| json!({"device": id, "active": flag.map(|f| f.0), "epoch": flag.map(|f| f.1)}))
        .collect();
    let text = format!("the twins in the hub, {took} ms later: {}", shown.join(", "));
    teller.line("twins", json!({"converged": right, "after_ms": took, "twins": facts}), &text);
    Ok(right)
}

fn keep(site: &DemoSite, teller: &mut Teller) {
    teller.chapter("The site stays up: play with it, end it with Ctrl-C");
    let own = std::env::current_exe().map_or_else(|_| "quorate".to_owned(), |p| p.display().to_string());
    for (n, device) in site.devices.iter().enumerate() {
        let text = format!("{}: {}   {own} status --endpoint {}", device.id, site.http(n), site.control(n));
        teller.line(
            "kept",
            json!({"device": device.id, "status_page": site.http(n), "control": site.control(n)}),
            &text,
        );
    }
    let folder = site.folder().display().to_string();
    teller.line(
        "folder",
        json!({"path": folder}),
        &format!("configuration, logs and tick records: {folder}"),
    );
}
