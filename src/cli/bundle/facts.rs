//! Facts about this device that explain how a sidecar fares on it: the system, its clocks, its memory, its data folder.
//!
//! Read from `/proc` and `/sys`; what cannot be read is left out. Of the data folder names and sizes alone.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{
    clock::{BootClock, Clock as _, millis},
    raft::log::room,
};

/// Small texts that the kernel keeps.
const KERNEL: [(&str, &str); 8] = [
    ("kernel", "/proc/sys/kernel/osrelease"),
    ("architecture", "/proc/sys/kernel/arch"),
    ("clocksource", "/sys/devices/system/clocksource/clocksource0/current_clocksource"),
    ("load", "/proc/loadavg"),
    ("cgroup_controllers", "/sys/fs/cgroup/cgroup.controllers"),
    ("pressure_cpu", "/proc/pressure/cpu"),
    ("pressure_io", "/proc/pressure/io"),
    ("pressure_memory", "/proc/pressure/memory"),
];
/// No more of a data folder is listed.
const FILES_MAX: usize = 200;

/// All of them.
pub(super) fn all(data: Option<&Path>) -> Value {
    let mut facts = Map::new();
    let mut put = |name: &str, value: Value| facts.insert(name.to_owned(), value);
    put("quorate", env!("CARGO_PKG_VERSION").into());
    put("emulator", cfg!(feature = "emulator").into());
    for (name, path) in KERNEL {
        if let Some(text) = small(path) {
            put(name, text.trim().into());
        }
    }
    let release = small("/etc/os-release").unwrap_or_default();
    let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    put("system", system.map(|name| name.trim_matches('"')).into());
    put("processors", std::thread::available_parallelism().ok().map(usize::from).into());
    let memory = small("/proc/meminfo").unwrap_or_default();
    for (name, field) in [("memory_total", "MemTotal:"), ("memory_available", "MemAvailable:")] {
        put(name, memory.lines().find_map(|line| line.strip_prefix(field)).map(str::trim).into());
    }
    put("wall_unix_ms", BootClock.wall_ms().into());
    put("since_boot_ms", millis(BootClock.now().since(crate::clock::Moment::default())).into());
    if let Some(data) = data {
        put("data_folder", folder(data));
    }
    Value::Object(facts)
}

fn small(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.chars().take(4096).collect())
}

fn folder(data: &Path) -> Value {
    let mut files = Map::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
            } else if files.len() < FILES_MAX {
                let path = entry.path();
                let name = path.strip_prefix(data).unwrap_or(&path).display().to_string();
                files.insert(name, meta.len().into());
            }
        }
    }
    json!({ "path": data.display().to_string(), "free_bytes": room::free(data).ok(), "files": files })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_there_is_and_nothing_of_what_is_in_it() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::create_dir(folder.path().join("store")).expect("makes");
        std::fs::write(folder.path().join("store/db"), "secret").expect("writes");
        let facts = all(Some(folder.path()));
        assert_eq!(facts["data_folder"]["files"]["store/db"], 6);
        assert!(
            facts["kernel"].is_string() && facts["processors"].is_u64() && facts["memory_total"].is_string()
        );
        assert!(facts["data_folder"]["free_bytes"].is_u64());
        assert!(!facts.to_string().contains("secret"));
        assert!(
            all(Some(Path::new("/nowhere")))["data_folder"]["files"].as_object().is_some_and(Map::is_empty)
        );
    }
}
