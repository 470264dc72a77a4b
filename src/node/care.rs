//! Looks after what the workload needs on this device, and says what it is.
//!
//! It decides nothing: what is found to fail makes the device unwell ([`Node::ails`]), and the loops take it from there.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Node;
use crate::{
    config::{self, Config},
    workload::{Observed, find_program, fingerprint::Covered, runtime::Runtime},
};

/// Who may always answer and does not within this time, hangs.
const ANSWERS_WITHIN: Duration = Duration::from_secs(4);

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
    let mut image = None;
    match &config.workload {
        config::Workload::None | config::Workload::Gate { .. } => {}
        config::Workload::Process { command, working_dir, env, on_standby, limits, user, .. } => {
            node.ails("limits", limits.ways(*user).err());
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
    tasks.spawn(watch_build(node.clone(), config.covered(), image, stop.clone()));
    Ok(())
}

fn unknown(node: &Node, why: &str) {
    tracing::debug!("no fingerprint: {why}");
    node.has_no_build(why);
}

/// Says what this device runs, anew once something of it has changed.
async fn watch_build(node: Arc<Node>, covered: Covered, container: Option<Runtime>, stop: CancellationToken) {
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
                Ok(None) => {
                    node.has_no_build(&format!("there is no {}", runtime.title()));
                    continue;
                }
                Err(why) => {
                    node.has_no_build(&why);
                    continue;
                }
            },
            None => None,
        };
        let (covered, before) = (covered.clone(), known.clone());
        // A model may be large and the disk slow.
        let made = tokio::task::spawn_blocking(move || {
            let traced = (covered.trace()?, image);
            if before.as_ref() == Some(&traced) {
                return Ok(None);
            }
            covered.fingerprint(traced.1.as_deref()).map(|made| Some((made, traced)))
        });
        match made.await {
            Ok(Ok(Some((made, traced)))) => {
                tracing::info!(fingerprint = made, "what this device runs");
                node.declare_build(&made);
                known = Some(traced);
            }
            Ok(Ok(None)) => {}
            Ok(Err(why)) => unknown(&node, &why),
            Err(e) => unknown(&node, &e.to_string()),
        }
    }
}

/// Whether it runs here and shall be left alone. One that has ended by itself is none that runs: if it cannot be started again,
/// another device has to.
fn is_running(node: &Node) -> bool {
    matches!(*node.observed.borrow(), Observed::Running { .. } | Observed::Stopping { .. })
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
        let runs = is_running(&node);
        if let Ok(found) = found {
            node.ails("program", found.err().filter(|_| !runs));
        }
    }
}

/// Whoever runs containers may start this one by itself: after a deployment IoT Edge does so on every device.
async fn watch_container(node: Arc<Node>, runtime: Runtime, stop: CancellationToken) {
    // The daemon of IoT Edge answers nobody while it stops something, and that is no fault.
    let always = runtime.answers_always();
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
            () = tokio::time::sleep(ANSWERS_WITHIN), if always => {
                Err(format!("whoever runs the {} has not answered for {} s", runtime.title(), ANSWERS_WITHIN.as_secs()))
            }
        };
        if is_running(&node) {
            node.ails("container", None);
            continue;
        }
        let ours = node.observed.borrow().may_run();
        let ailment = match seen {
            Ok(None) => Some(format!("there is no {}", runtime.title())),
            Ok(Some(seen)) => {
                if seen.runs && !ours {
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
