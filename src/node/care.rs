//! Looks after what the workload needs on this device, and says what it is.
//!
//! It decides nothing: what is found to fail makes the device unwell ([`Node::ails`]), and the loops take it from there.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Node;
use crate::{
    config::{self, Config},
    workload::{
        Settings, find_program,
        fingerprint::{fingerprint, trace},
        runtime::Runtime,
    },
};

/// Looks after what the workload needs on this device while it does not run here. A device that lacks it does not take over; what
/// runs is left alone, whatever became of its file.
///
/// # Errors
/// If it cannot be looked after at all; that is a defect.
pub(super) fn watch(
    config: &Config,
    node: &Arc<Node>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), String> {
    let (settings, _) = config.workload.settings(&config.site.timing);
    let mut image = None;
    match &config.workload {
        config::Workload::None | config::Workload::Gate { .. } => {}
        config::Workload::Process { command, working_dir, env, on_standby, .. } => {
            let programs = [command, on_standby].into_iter().filter_map(|c| c.first().cloned()).collect();
            tasks.spawn(watch_programs(
                node.clone(),
                programs,
                working_dir.clone(),
                env.clone(),
                stop.clone(),
            ));
        }
        config::Workload::Hooks { on_owner, on_standby, working_dir, env } => {
            let programs = [on_owner, on_standby].into_iter().filter_map(|c| c.first().cloned()).collect();
            tasks.spawn(watch_programs(
                node.clone(),
                programs,
                working_dir.clone(),
                env.clone(),
                stop.clone(),
            ));
        }
        config::Workload::Container { api, socket, name, .. } => {
            let runtime = Runtime::new(*api, socket.clone(), name)?;
            image = Some(runtime.clone());
            tasks.spawn(watch_container(node.clone(), runtime, stop.clone()));
        }
    }
    let covers = !settings.command.is_empty() || !config.fingerprint_files.is_empty();
    if covers {
        let files = config.fingerprint_files.clone();
        tasks.spawn(watch_build(node.clone(), settings, files, image, stop.clone()));
    }
    Ok(())
}

/// Says what this device runs, anew once something of it has changed.
async fn watch_build(
    node: Arc<Node>,
    settings: Settings,
    files: Vec<PathBuf>,
    container: Option<Runtime>,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    let mut known = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let image = match &container {
            Some(runtime) => match runtime.look().await {
                Ok(Some(seen)) => seen.image,
                // It may come back; what is known stays.
                Ok(None) | Err(_) => continue,
            },
            None => None,
        };
        let (settings, files, before) = (settings.clone(), files.clone(), known.clone());
        // A model may be large and the disk slow.
        let made = tokio::task::spawn_blocking(move || {
            let traced = (trace(&settings, &files)?, image);
            if before.as_ref() == Some(&traced) {
                return Ok(None);
            }
            fingerprint(&settings, &files, traced.1.as_deref()).map(|made| Some((made, traced)))
        });
        match made.await {
            Ok(Ok(Some((made, traced)))) => {
                tracing::info!(fingerprint = made, "what this device runs");
                node.group.roster().declare_build(&made);
                known = Some(traced);
            }
            Ok(Ok(None)) => {}
            Ok(Err(why)) => tracing::debug!("no fingerprint: {why}"),
            Err(e) => tracing::debug!("no fingerprint: {e}"),
        }
    }
}

async fn watch_programs(
    node: Arc<Node>,
    programs: Vec<String>,
    working_dir: Option<PathBuf>,
    env: BTreeMap<String, String>,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(Duration::from_secs(2));
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let (programs, folder, env) = (programs.clone(), working_dir.clone(), env.clone());
        let find =
            move || programs.iter().try_for_each(|p| find_program(p, folder.as_deref(), &env).map(drop));
        let found = tokio::task::spawn_blocking(find).await;
        let runs = node.observed.borrow().may_run();
        if let Ok(found) = found {
            node.ails("program", found.err().filter(|_| !runs));
        }
    }
}

/// Whoever runs containers may start this one by itself: after a deployment IoT Edge does so on every device.
async fn watch_container(node: Arc<Node>, runtime: Runtime, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let seen = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            seen = runtime.look() => seen,
        };
        if node.observed.borrow().may_run() {
            node.ails("container", None);
            continue;
        }
        let ailment = match seen {
            Ok(None) => Some(format!("there is no {}", runtime.title())),
            Ok(Some(seen)) => {
                if seen.runs {
                    tracing::warn!(
                        "the {} runs although this device does not own; it is stopped",
                        runtime.title()
                    );
                    if let Err(why) = runtime.kill().await {
                        tracing::error!("it cannot be stopped: {why}");
                    }
                }
                seen.unsuited.map(|why| format!("{}: {why}", runtime.title()))
            }
            Err(why) => Some(why),
        };
        node.ails("container", ailment);
    }
}
