//! Whether the workload's door works on this device, as far as that can be tried without a workload.

use std::os::unix::fs::FileTypeExt as _;

use super::hub::Tried;
use crate::{
    config::{Config, Workload},
    control::lease_file::LeaseFile,
    raft::peer::VERSION,
    workload::{find_program, runtime::Runtime},
};

/// Each part of the door, and what is wrong with it; and what this device would say that it runs.
pub(super) async fn tries(config: &Config) -> Vec<Tried> {
    let mut all = door(config).await;
    let image = match &config.workload {
        Workload::Container { api, socket, name, .. } => match Runtime::new(*api, socket.clone(), name) {
            Ok(runtime) => runtime.look().await.ok().flatten().and_then(|seen| seen.image),
            Err(_) => None,
        },
        _ => None,
    };
    let covered = config.covered();
    // A model may be large and the disk slow.
    let made = tokio::task::spawn_blocking(move || covered.fingerprint(image.as_deref())).await;
    let (build, error) = match made.map_err(|e| e.to_string()).and_then(|made| made) {
        Ok(fingerprint) => (format!(" {VERSION}+{fingerprint}"), None),
        Err(why) => (String::new(), Some(why)),
    };
    // What the door lacks is missing here too, and has been said.
    if error.is_none() || all.iter().all(|tried| tried.error.is_none()) {
        all.push(Tried { what: format!("the build{build}"), took_ms: 0, error });
    }
    all
}

async fn door(config: &Config) -> Vec<Tried> {
    let tried = |what: String, outcome: Result<(), String>| Tried { what, took_ms: 0, error: outcome.err() };
    match &config.workload {
        Workload::None => Vec::new(),
        Workload::Process { command, on_standby, working_dir, env, .. }
        | Workload::Hooks { on_owner: command, on_standby, working_dir, env } => {
            let programs = [command, on_standby].into_iter().filter_map(|words| words.first());
            let find = |program: &String| {
                let found = find_program(program, working_dir.as_deref(), env);
                let path = found.as_ref().map_or_else(|_| program.clone(), |path| path.display().to_string());
                tried(format!("the program {path}"), found.map(|_| ()))
            };
            let mut all: Vec<Tried> = programs.map(find).collect();
            if let Workload::Process { limits, user, .. } = &config.workload
                && !limits.is_empty()
            {
                let ways = limits.ways(*user);
                let by = ways.as_ref().map_or(String::new(), |by| format!(" (by {by})"));
                all.push(tried(format!("the limits{by}"), ways.map(|_| ())));
            }
            all
        }
        Workload::Container { api, socket, name, .. } => {
            let runtime = Runtime::new(*api, socket.clone(), name);
            let what = format!("the {} {name} through {}", api.noun(), socket.display());
            let outcome = async {
                match runtime?.look().await? {
                    None => Err(format!("there is no {} of this name on this device", api.noun())),
                    Some(seen) => seen.unsuited.map_or(Ok(()), Err),
                }
            };
            vec![tried(what, outcome.await)]
        }
        Workload::Gate { socket, lease_file } => {
            let mut all = Vec::new();
            if let Some(path) = socket {
                let folder = path.parent().map(std::path::Path::to_owned).unwrap_or_default();
                // A missing folder is made at the start, if the one above it is there.
                let place = if folder.is_dir() { Some(folder.as_path()) } else { folder.parent() };
                let outcome = place.map_or(Err("it has no folder".to_owned()), |place| {
                    rustix::fs::access(place, rustix::fs::Access::WRITE_OK).map_err(|e| {
                        format!("{}: {e}; make the folder, or run as another user", place.display())
                    })
                });
                let other = std::fs::symlink_metadata(path).is_ok_and(|m| !m.file_type().is_socket());
                let outcome = match other {
                    true => Err("something else is there; move it away".to_owned()),
                    false => outcome,
                };
                all.push(tried(format!("the socket {}", path.display()), outcome));
            }
            if let Some(path) = lease_file {
                let outcome = LeaseFile::at(path.clone()).try_out();
                all.push(tried(format!("the lease file {}", path.display()), outcome));
            }
            all
        }
    }
}
