//! The house rules of `src/`, held by reading it: imports only go down, each library stays in its room, and every file
//! says first why it exists.
//!
//! It reads text, not syntax: comments are taken away, then every `crate::` path is looked at, also inside braces. That
//! is enough for code that is formatted; a macro that builds a path from pieces would be missed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The rooms, floor by floor. The same list stands in `src/lib.rs`.
const FLOORS: [&[&str]; 6] = [
    &["clock", "condition", "dice", "epoch", "id", "seal", "site", "timing"],
    &["ownership"],
    &["hub", "probe", "raft", "workload"],
    &["reconcile"],
    &["config", "control", "emulator", "status"],
    &["cli", "node"],
];

/// Uses inside a floor that are allowed, each with its reason.
const NEIGHBOURS: [(&str, &str, &str); 6] = [
    ("seal", "epoch", "a receipt is for one epoch"),
    ("site", "id", "a site is named by ids"),
    ("site", "timing", "a site agrees on its timing"),
    ("probe", "workload", "a command that is asked is a process, and `workload/` starts and ends those"),
    ("control", "status", "both faces show what one door tells, so that they cannot contradict each other"),
    ("cli", "node", "`quorate run` starts the node"),
];

/// Files of a loop that may name another loop: they share one type, not behaviour.
const LOOPS: [(&str, &str, &str); 4] = [
    ("ownership", "lease", "the lease's type `Held` is what the watch channel between the two carries"),
    (
        "uplink",
        "mirror",
        "the mirror's state is what the watch channel between the two carries; both knock at one pace",
    ),
    ("gate", "lease", "the same, for the gate"),
    ("module", "mirror", "both knock at one pace"),
];

/// Crates that only some files may name.
const CRATES: [(&str, &[&str]); 3] = [
    ("openraft", &["raft/"]),
    ("sled", &["raft/log/sled.rs"]),
    ("reqwest", &["hub/", "workload/runtime.rs"]),
];

/// What the decisions may use beside the standard library and the words.
const PURE: [&str; 6] = ["std", "serde", "thiserror", "crate", "super", "self"];

struct Source {
    /// Relative to `src/`, such as `raft/group.rs`.
    path: String,
    whole: String,
    /// Without comments and without what only tests see.
    code: String,
}

impl Source {
    fn room(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs")
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("lists") {
            let path: PathBuf = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let whole = fs::read_to_string(&path).expect("reads");
                let path = path.strip_prefix(&root).expect("below src").to_string_lossy().into_owned();
                let code = code(&whole);
                found.push(Source { path, whole, code });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 50, "the sources were not found");
    found
}

/// Takes away comments and the inline tests at a file's end.
fn code(whole: &str) -> String {
    let shown = match whole.find("#[cfg(test)]\nmod tests {") {
        Some(end) => &whole[..end],
        None => whole,
    };
    shown.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The first part of every path behind `prefix`, such as `raft` and `clock` in `crate::{raft::{Group, Role}, clock}`.
fn behind(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for c in list.chars() {
            match c {
                '}' if depth == 0 => break,
                ',' if depth == 0 => found.insert(word(&std::mem::take(&mut item))),
                _ => {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    item.push(c);
                    true
                }
            };
        }
        found.insert(word(&item));
    }
    found.remove("");
    found
}

fn word(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

#[test]
fn the_reader_sees_what_there_is() {
    let text = "use crate::{\n    clock::{Clock, Moment}, // crate::hub\n    raft::Group,\n};\nlet x = crate::id::fnv1a(b);";
    let seen: Vec<_> = behind(&code(text), "crate::").into_iter().collect();
    assert_eq!(seen, ["clock", "id", "raft"]);
}

#[test]
fn imports_only_go_down() {
    let floor_of: BTreeMap<&str, usize> =
        FLOORS.iter().enumerate().flat_map(|(n, rooms)| rooms.iter().map(move |r| (*r, n))).collect();
    let (mut faults, mut used) = (Vec::new(), BTreeSet::new());
    for source in sources().iter().filter(|s| !matches!(s.room(), "lib" | "main")) {
        let own = source.room();
        let Some(floor) = floor_of.get(own) else {
            faults.push(format!("{} is on no floor", source.path));
            continue;
        };
        for other in behind(&source.code, "crate::") {
            let Some(below) = floor_of.get(other.as_str()) else {
                faults.push(format!("{} uses crate::{other}, which is on no floor", source.path));
                continue;
            };
            let exception = NEIGHBOURS.iter().position(|(a, b, _)| (*a, *b) == (own, other.as_str()));
            used.extend(exception);
            if other != own && below >= floor && exception.is_none() {
                faults.push(format!("{} (floor {floor}) uses {other} (floor {below})", source.path));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(used.len(), NEIGHBOURS.len(), "an exception that nobody uses should go");
}

#[test]
fn the_list_of_rooms_is_the_crates() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("reads");
    let mut floors: Vec<Vec<&str>> = Vec::new();
    for line in lib.lines() {
        if line.starts_with("// Floor ") {
            floors.push(Vec::new());
        } else if let Some(room) = line.strip_prefix("pub mod ").and_then(|l| l.strip_suffix(';')) {
            floors.last_mut().expect("a floor before its rooms").push(room);
        }
    }
    assert_eq!(floors, FLOORS.map(<[&str]>::to_vec));
}

#[test]
fn loops_do_not_know_each_other() {
    let sources = sources();
    let loops: Vec<&Source> = sources.iter().filter(|s| s.room() == "reconcile").collect();
    // Not loops: the room's front door, and the jitter and the meter that loops share.
    let helpers = ["mod", "backoff", "meter"];
    let name = |s: &Source| s.path["reconcile/".len()..].split(['/', '.']).next().map(str::to_owned);
    let names: BTreeSet<String> = loops.iter().filter_map(|s| name(s)).collect();
    for source in &loops {
        let own = name(source).expect("a name");
        // One `super` leads out of a loop's own file, two out of a file in its folder.
        let deep = source.path.matches('/').count() > 1;
        let used = behind(&source.code, if deep { "super::super::" } else { "super::" });
        for other in used.iter().filter(|u| names.contains(*u) && **u != own) {
            let allowed = helpers.contains(&other.as_str())
                || LOOPS.iter().any(|(a, b, _)| (*a, *b) == (own.as_str(), other.as_str()));
            assert!(allowed, "the loop {own} imports the loop {other}");
        }
    }
}

#[test]
fn libraries_stay_in_their_rooms() {
    for source in sources().iter().filter(|s| !s.is_test()) {
        for (name, homes) in CRATES {
            let named = source.code.match_indices(&format!("{name}::")).any(|(at, _)| {
                let before = source.code[..at].chars().next_back().unwrap_or(' ');
                // `memory::sled::` and `log/sled.rs` itself are modules of ours; a crate stands at the path's start.
                !before.is_ascii_alphanumeric() && !matches!(before, '_' | ':')
            });
            // Beside it in the room, `sled` is our own module, which has none of the crate's types.
            let module = name == "sled"
                && source.path.starts_with("raft/log/")
                && !["use sled", "::sled::", "sled::Db", "sled::Config", "sled::Batch", "sled::open"]
                    .iter()
                    .any(|of_the_crate| source.code.contains(of_the_crate));
            let at_home = homes.iter().any(|home| source.path.starts_with(home));
            assert!(!named || at_home || module, "{} names the crate {name}", source.path);
        }
    }
}

#[test]
fn decisions_are_pure() {
    for source in sources().iter().filter(|s| s.room() == "ownership" && !s.is_test()) {
        for line in source.code.lines() {
            let line = line.trim_start();
            if let Some(path) = line.strip_prefix("use ").or_else(|| line.strip_prefix("pub use ")) {
                assert!(PURE.contains(&word(path).as_str()), "{}: {line}", source.path);
            }
        }
        for found in
            ["tokio", "std::fs", "std::env", "std::net", "std::thread", "async fn", "std::time::Instant"]
        {
            assert!(!source.code.contains(found), "{} contains {found}", source.path);
        }
    }
}

#[test]
fn the_hub_is_no_authority() {
    for source in sources().iter().filter(|s| matches!(s.room(), "ownership" | "raft")) {
        assert!(!behind(&source.code, "crate::").contains("hub"), "{} imports the hub", source.path);
    }
}

#[test]
fn every_file_opens_with_why_it_exists() {
    for source in sources().iter().filter(|s| !s.is_test() && s.path != "lib.rs") {
        assert!(source.whole.starts_with("//! "), "{} does not open with `//! `", source.path);
    }
}
