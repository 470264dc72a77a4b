//! What the store acknowledges has survived a sync, shown by the system calls of the real store.
//!
//! The test runs itself again under strace: the child makes a store, writes, and says on standard output when each write
//! was acknowledged; strace notes that line among the writes and syncs of the store's files, in the order of the kernel.
//! sled's own flush ends in `sync_file_range(2)`, which a power cut undoes, so only fsync and fdatasync count.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use bytes::Bytes;
use quorate::{
    clock::BootClock,
    raft::log::{Change, Disk, StoredLogId, StoredVote, sled::SledDisk},
    site::{Member, Role, Site},
    timing::{Settings, Timing},
};

/// Tells the child that it is the child, and where to write.
const FOLDER: &str = "QUORATE_TEST_DURABILITY_FOLDER";
const NAME: &str = "durability::every_acknowledged_write_was_synced_first";
const REOPENED: &str = "what the new life found";
const ACKNOWLEDGED: &str = "acknowledged: ";

fn id(index: u64) -> StoredLogId {
    StoredLogId { term: 1, node: 7, index }
}

fn entry(index: u64) -> (StoredLogId, Bytes) {
    (id(index), Bytes::from(format!("entry {index}")))
}

/// Every kind of write that something is answered for.
fn changes() -> Vec<(&'static str, Change)> {
    let vote = |term, committed| Change::Vote(StoredVote { term, node: 7, committed });
    vec![
        ("a vote", vote(1, false)),
        ("a vote for a leader that has won without it", vote(2, true)),
        ("an entry", Change::Append(vec![entry(1)])),
        ("many entries", Change::Append((2..40).map(entry).collect())),
        ("a truncation", Change::TruncateFrom(30, Some(id(29)))),
        ("the entry in its place", Change::Append(vec![entry(30)])),
        ("a later vote", vote(3, false)),
        ("the whole log but its first entry", Change::TruncateFrom(1, Some(StoredLogId::default()))),
    ]
}

fn site() -> Site {
    let member = Member {
        device: "edge-1".parse().expect("a name"),
        address: "10.0.0.1:7600".into(),
        role: Role::Voter,
    };
    let timing = Timing::new(&Settings::default()).expect("consistent");
    Site { id: "plant-7".parse().expect("a name"), members: vec![member], timing }
}

/// The child's work.
fn write_and_tell(folder: &Path) {
    let first = quorate::raft::log::first_entry(&site()).expect("encodes");
    let disk = SledDisk::create(folder, first, Arc::new(BootClock), Arc::new(|_| {})).expect("creates");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let tell = |what: &str| {
        // One system call, and not the captured output of a test.
        let mut out = fs::File::options().write(true).open("/dev/stdout").expect("opens");
        out.write_all(format!("{ACKNOWLEDGED}{what}\n").as_bytes()).expect("writes");
    };
    tell("the new store");
    for (what, change) in changes() {
        runtime.block_on(disk.write(change)).expect("writes");
        tell(what);
    }
    drop(disk);
    // sled lets go of its files a moment later. Then what a killed sidecar may leave behind: writes that were never synced.
    for name in ["store/db", "mark"] {
        let file = fs::File::options().read(true).write(true).open(folder.join(name)).expect("opens");
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("locks");
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).expect("reads");
        file.write_all_at(&byte, 0).expect("writes");
    }
    SledDisk::open(folder, Arc::new(BootClock), Arc::new(|_| {})).expect("opens");
    tell(REOPENED);
}

/// A system call as strace wrote it down.
#[derive(Debug)]
struct Call {
    name: String,
    /// The file that the first argument stands for, or the whole first argument.
    file: String,
    text: String,
}

/// Joins the calls that strace cut in two because another thread was faster; a call counts where it returned.
fn calls(trace: &str) -> Vec<Call> {
    let mut begun = std::collections::BTreeMap::new();
    let mut found = Vec::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(first) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(thread.to_owned(), first.to_owned());
            continue;
        }
        let whole = match rest.strip_prefix("<... ").and_then(|r| r.split_once(" resumed>")) {
            Some((_, end)) => begun.remove(thread).unwrap_or_default() + end,
            None => rest.to_owned(),
        };
        let Some((name, arguments)) = whole.split_once('(') else { continue };
        // `-y` shows a descriptor as `3</folder/store/db>`.
        let file = arguments.split_once('<').and_then(|(_, f)| f.split_once('>')).map_or("", |(f, _)| f);
        found.push(Call { name: name.into(), file: file.into(), text: whole.clone() });
    }
    found
}

/// Walks through the calls and reports what was acknowledged while one of the store's files had unsynced writes, and
/// how often each file was synced before each acknowledgement.
fn judge(calls: &[Call], folder: &Path) -> (Vec<String>, Vec<String>) {
    let watched = [folder.join("store/db"), folder.join("mark")].map(|p| p.to_string_lossy().into_owned());
    let (mut dirty, mut synced) = (BTreeSet::new(), BTreeSet::new());
    let (mut acknowledged, mut faults) = (Vec::new(), Vec::new());
    for call in calls {
        if let Some((_, what)) = call.text.split_once(ACKNOWLEDGED)
            && call.name == "write"
        {
            let what = what.split("\\n").next().unwrap_or_default().to_owned();
            faults.extend(dirty.iter().map(|file| format!("{what}: {file} had unsynced writes")));
            faults.extend(
                watched
                    .iter()
                    // Only a vote or an entry changes the mark; all of these do.
                    .filter(|file| !synced.contains(*file))
                    .map(|file| format!("{what}: {file} was not synced since the acknowledgement before")),
            );
            acknowledged.push(what);
            synced.clear();
            continue;
        }
        if !watched.contains(&call.file) {
            continue;
        }
        match call.name.as_str() {
            "write" | "pwrite64" | "writev" | "pwritev" | "pwritev2" | "ftruncate" | "fallocate" => {
                dirty.insert(call.file.clone());
            }
            "fsync" | "fdatasync" if call.text.ends_with("= 0") => {
                dirty.remove(&call.file);
                synced.insert(call.file.clone());
            }
            _ => {}
        }
    }
    (acknowledged, faults)
}

#[test]
fn every_acknowledged_write_was_synced_first() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return write_and_tell(Path::new(&folder));
    }
    let dir = tempfile::tempdir().expect("a folder");
    let folder = fs::canonicalize(dir.path()).expect("exists").join("data");
    fs::create_dir(&folder).expect("creates");
    let trace: PathBuf = dir.path().join("trace");
    let own = std::env::current_exe().expect("the test's own path");
    let output = Command::new("strace")
        .args(["-f", "-y", "-s", "200", "-e"])
        .arg("trace=write,pwrite64,writev,pwritev,pwritev2,ftruncate,fallocate,fsync,fdatasync,sync_file_range")
        .arg("-o")
        .arg(&trace)
        .arg(own)
        .args(["--exact", NAME, "--nocapture"])
        .env(FOLDER, &folder)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(e) => panic!("this test needs the program strace (Debian: apt-get install strace): {e}"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "strace did not run the store; it needs the right to trace its own children (ptrace): {said}\n{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let trace = fs::read_to_string(&trace).expect("strace wrote its trace");
    let (acknowledged, faults) = judge(&calls(&trace), &folder);
    let expected: Vec<&str> = std::iter::once("the new store")
        .chain(changes().into_iter().map(|(what, _)| what))
        .chain([REOPENED])
        .collect();
    assert_eq!(acknowledged, expected, "every acknowledgement was seen");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_judge_sees_a_missing_sync() {
    let db = "pwrite64(4</d/store/db>, \"x\", 1, 0) = 1";
    let mark = "pwrite64(5</d/mark>, \"x\", 1, 0) = 1";
    let synced = |file: &str| format!("7 fdatasync({file}) = 0");
    let told = format!("8 write(1</out>, \"{ACKNOWLEDGED}a vote\\n\", 20) = 20");
    let faults = |lines: &[String]| judge(&calls(&lines.join("\n")), Path::new("/d")).1;
    let (db, mark) = (format!("7 {db}"), format!("7 {mark}"));
    let (db_synced, mark_synced) = (synced("4</d/store/db>"), synced("5</d/mark>"));
    let good = [&db, &db_synced, &mark, &mark_synced, &told].map(Clone::clone);
    assert_eq!(faults(&good), [""; 0]);
    for missing in [1, 3] {
        let mut bad = good.to_vec();
        bad.remove(missing);
        assert_eq!(faults(&bad).len(), 2, "{bad:?}");
    }
    // Synced, but too early; and a sync that returns only after the acknowledgement.
    assert!(!faults(&[&db_synced, &db, &mark, &mark_synced, &told].map(Clone::clone)).is_empty());
    let late = [
        db.clone(),
        db_synced.clone(),
        mark.clone(),
        "7 fdatasync(5</d/mark> <unfinished ...>".into(),
        told.clone(),
        "7 <... fdatasync resumed>) = 0".into(),
    ];
    assert!(!faults(&late).is_empty());
    let range = "7 sync_file_range(4</d/store/db>, 0, 0, 7) = 0".to_owned();
    assert!(!faults(&[db, range, mark, mark_synced, told]).is_empty());
}
