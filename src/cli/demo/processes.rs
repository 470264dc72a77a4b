//! Child processes of a site on one machine: how they are tied, who is below whom, which ports are free.
//!
//! Shared by the demo and the benchmarks, which include this file: neither decides anything here.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
};

use rustix::process::{Pid, Signal, kill_process};

/// The arguments with which `program` runs itself again such that it dies with the caller's thread. So whoever uses
/// them must spawn from its main thread.
pub(super) fn tied(program: &Path) -> [OsString; 4] {
    ["fencer-exec".into(), std::process::id().to_string().into(), OsString::new(), program.into()]
}

/// Signals a process. One that has ended meanwhile is no failure.
pub(super) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = kill_process(pid, signal);
    }
}

/// All processes below this one, parents first, by /proc.
pub(super) fn descendants(root: u32) -> Vec<u32> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name in brackets may hold anything; the parent is the second word behind it.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let mut found = vec![root];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, p)| **p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

/// Ports that were free a moment ago, all different.
pub(super) fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let held: Vec<TcpListener> = (0..count).map(bind).collect::<Result<_, _>>()?;
    held.iter().map(|l| Ok(l.local_addr()?.port())).collect()
}

/// A path as a TOML text.
pub(super) fn toml_text(path: &Path) -> String {
    // A JSON string is a TOML basic string.
    serde_json::Value::from(path.display().to_string()).to_string()
}
