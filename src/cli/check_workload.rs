//! `quorate check-workload`: how the workload behaves under the fencer, before it has to.
//!
//! It really runs the workload on this device, so it asks to be told that this does no harm, and refuses where a sidecar answers.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{CONFIG, DONE, NO, REFUSED, Stop, client::Trouble, say, tell};
use crate::{
    clock::BootClock,
    config::{self, Config, Environment},
    workload::{self, Context, exam},
};

/// Run the workload on this device under the fencer, and grade it
///
/// Starts it, lets it run, tells it to stop, and starts it again and lets its deadline pass, as
/// when the sidecar is frozen. Says whether it starts, stays, ends in time, and leaves nothing
/// behind. It does what it does on the owner, so run this only where that does no harm:
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
    if answers(&config).await {
        let message = "a sidecar runs on this device, and may run the workload at any moment".to_owned();
        return Err(refused(message, "stop it first, or try this on a test bench").into());
    }
    let folder = std::env::temp_dir().join(format!("quorate-check-{}", std::process::id()));
    let made = std::fs::create_dir(&folder);
    made.map_err(|e| refused(format!("{}: {e}", folder.display()), "make room, or set TMPDIR"))?;
    let grades = examine(&config, &settings, &folder, &args).await;
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

async fn examine(
    config: &Config,
    settings: &workload::Settings,
    folder: &std::path::Path,
    args: &Args,
) -> Result<Vec<exam::Grade>, String> {
    let (tracker, leave) = (TaskTracker::new(), CancellationToken::new());
    let context = Context {
        program: None,
        data: folder.to_owned(),
        device: config.me.clone(),
        site: config.site.id.clone(),
        site_digest: config.site.digest(),
        // Nobody is told of its end: no member waits for this.
        members: Vec::new(),
        control_socket: config.control.socket.clone(),
        cgroup: true,
        adopts: workload::adopt(),
        timing: config.site.timing,
        clock: Arc::new(BootClock),
        tracker: tracker.clone(),
        leave: leave.clone(),
    };
    let grades = exam::examine(settings, context, Duration::from_secs(args.seconds), tell).await;
    leave.cancel();
    tracker.close();
    tracker.wait().await;
    grades
}
