//! `quorate check-workload`: how the workload behaves under the fencer, before it has to.
//!
//! It really runs the workload on this device, so it asks to be told that this does no harm, and refuses where a sidecar works. It holds
//! the data folder meanwhile, so that none begins.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{CONFIG, DONE, NO, REFUSED, Stop, client::Trouble, log, say, tell};
use crate::{
    clock::{BootClock, Clock as _},
    config::{self, Config, Environment},
    probe,
    raft::log::folder,
    workload::{self, Context, exam},
};

/// Run the workload on this device under the fencer, and grade it
///
/// Starts it, lets it run, tells it to stop, and starts it again and lets its deadline pass, as
/// when the sidecar is frozen. Says whether it keeps its limits, starts, says that it is ready,
/// passes its probes, stays, ends in time, and leaves nothing behind; what it prints is shown.
/// It does what it does on the owner, so run this only where that does no harm:
/// on a test bench, or with the site's sidecars stopped.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  quorate check-workload --yes\n  quorate check-workload --yes --seconds 60 --json\n\n\
                        Exit codes: 0 it passes, 1 it does not, 2 it could not be tried, 78 the configuration is wrong."
)]
pub(super) struct Args {
    /// The configuration file [default: QUORATE_CONFIG, then /etc/quorate/quorate.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// For how long to let it run
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// It does no harm to run the workload on this device now
    #[arg(long)]
    yes: bool,
    /// Print one JSON object: ok, and all grades
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, environment: &Environment) -> Result<u8, Stop> {
    let config = config::load(args.config.as_deref(), environment).map_err(|faults| {
        tell(&format!("quorate: {faults}"));
        CONFIG
    })?;
    let refused = |message: String, hint: &str| Trouble { message, hint: hint.into(), code: REFUSED };
    let (settings, kind) = config.workload.settings(&config.site.timing);
    if settings.command.is_empty() {
        let message = "this site's workload is not started by Quorate, so there is nothing to try".to_owned();
        return Err(refused(message, "`quorate check` tries the socket and the file of a gate").into());
    }
    if !args.yes {
        let message = format!("this runs the workload ({kind}) on this device, whoever owns the site");
        return Err(refused(message, "add --yes if that does no harm here").into());
    }
    // Held until the end, so that no sidecar begins meanwhile.
    let lock = match folder::lock(&config.storage.path) {
        Ok(lock) => Some(lock),
        // Where no sidecar could start.
        Err(folder::Error::Missing(_)) => None,
        Err(why @ folder::Error::InUse(_)) => {
            let hint = "the sidecar there may run the workload at any moment: stop it first, or try this on a test bench";
            return Err(refused(why.to_string(), hint).into());
        }
        Err(why) => {
            return Err(refused(why.to_string(), "run this as the user that the sidecar runs as").into());
        }
    };
    if answers(&config).await {
        let message = "a sidecar runs on this device, and may run the workload at any moment".to_owned();
        return Err(refused(message, "stop it first, or try this on a test bench").into());
    }
    let folder = std::env::temp_dir().join(format!("quorate-check-{}", std::process::id()));
    let made = std::fs::create_dir(&folder);
    made.map_err(|e| refused(format!("{}: {e}", folder.display()), "make room, or set TMPDIR"))?;
    // Whatever becomes of this, the next sidecar finds there what may be left.
    let data = if lock.is_some() { config.storage.path.clone() } else { folder.clone() };
    let grades = examine(&config, &settings, (data, folder.join("notify.sock")), &args).await;
    let _ = std::fs::remove_dir_all(&folder);
    let grades = grades.map_err(|why| refused(why, "see `quorate check`"))?;
    let ok = grades.iter().all(|grade| grade.passed);
    if args.json {
        say(&serde_json::json!({ "ok": ok, "grades": grades }).to_string())?;
    } else {
        let line = |g: &exam::Grade| {
            format!("{:<22} {:<4} {}\n", g.what, if g.passed { "yes" } else { "no" }, g.how)
        };
        let lines: String = grades.iter().map(line).collect();
        let verdict = if ok { "it passes" } else { "it does not pass" };
        say(&format!("{lines}\n{verdict}"))?;
    }
    Ok(if ok { DONE } else { NO })
}

/// Whether a sidecar answers where one of this device would.
async fn answers(config: &Config) -> bool {
    match &config.control.socket {
        Some(socket) => tokio::net::UnixStream::connect(socket).await.is_ok(),
        None => false,
    }
}

/// Whether it passes the probes that the site has for it, each within the time that it has from its start.
async fn probes(config: &Config) -> Option<exam::Grade> {
    let probes = config.probes.iter().filter(|probe| probe.role == probe::Role::Workload);
    let asked = probes.map(async |settings| {
        let (begun, mut probe) = (BootClock.now(), probe::open(settings));
        loop {
            let answer = tokio::time::timeout(settings.timeout, probe.ask()).await;
            let answer = answer
                .unwrap_or_else(|_| Err(format!("no answer within {} ms", settings.timeout.as_millis())));
            let took = BootClock.now().since(begun);
            match answer {
                Ok(()) => return Ok(format!("{} after {} ms", settings.name, took.as_millis())),
                Err(why) if took >= settings.thresholds.grace => {
                    return Err(format!("{}: {why}", settings.name));
                }
                Err(_) => tokio::time::sleep(settings.every).await,
            }
        }
    });
    let asked = futures_util::future::join_all(asked).await;
    let (passed, failed): (Vec<_>, Vec<_>) = asked.into_iter().partition(Result::is_ok);
    let words = |answers: Vec<Result<String, String>>| {
        answers.into_iter().map(|answer| answer.unwrap_or_else(|why| why)).collect::<Vec<_>>().join("; ")
    };
    match (passed.is_empty(), failed.is_empty()) {
        (true, true) => None,
        (_, true) => Some(exam::Grade::new("passes its probes", Ok(words(passed)))),
        _ => Some(exam::Grade::new("passes its probes", Err(words(failed)))),
    }
}

async fn examine(
    config: &Config,
    settings: &workload::Settings,
    (data, notify): (PathBuf, PathBuf),
    args: &Args,
) -> Result<Vec<exam::Grade>, String> {
    let (tracker, leave) = (TaskTracker::new(), CancellationToken::new());
    let context = Context {
        program: None,
        data,
        device: config.me.clone(),
        site: config.site.id.clone(),
        site_digest: config.site.digest(),
        // Nobody is told of its end: no member waits for this.
        members: Vec::new(),
        control_socket: config.control.socket.clone(),
        notify,
        cgroup: true,
        adopts: workload::adopt(),
        timing: config.site.timing,
        clock: Arc::new(BootClock),
        tracker: tracker.clone(),
        leave: leave.clone(),
    };
    // What it prints may say why it fails. Another subscriber there would do as well.
    let _ = tracing::subscriber::set_global_default(log::of_the_workload(Arc::new(BootClock)));
    let run_for = Duration::from_secs(args.seconds);
    let grades = exam::examine(settings, context, run_for, probes(config), tell).await;
    leave.cancel();
    tracker.close();
    tracker.wait().await;
    grades
}
