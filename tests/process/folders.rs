//! Data folders that cannot be used: each gets a sentence that says what to do and an exit code, and stays as it was.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Output,
    sync::OnceLock,
};

use rustix::process::Signal;

use super::site::{Plan, Site, ended, quorate, until};

/// What is in the data folder of a device that owned, and left in good order.
fn used() -> &'static BTreeMap<PathBuf, Vec<u8>> {
    static USED: OnceLock<BTreeMap<PathBuf, Vec<u8>>> = OnceLock::new();
    USED.get_or_init(|| {
        let (mut site, owner, _) = Site::running(Plan::default());
        // The owner first: its receipt is in every log then.
        for n in [owner, (owner + 1) % 3, (owner + 2) % 3] {
            site.signal(n, Signal::TERM);
            assert_eq!(site.left(n).code(), Some(0), "{}", site.log(n));
        }
        contents(&site.data(0))
    })
}

/// The same in a folder of its own.
fn used_folder(folder: &Path) {
    for (path, content) in used() {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("makes");
        fs::write(path, content).expect("writes");
    }
}

/// Every file below a folder, by its path from there, with its content.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn add(root: &Path, folder: &Path, all: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().expect("has one").is_dir() {
                add(root, &entry.path(), all);
            } else {
                let path = entry.path().strip_prefix(root).expect("is below").to_owned();
                all.insert(path, fs::read(entry.path()).unwrap_or_default());
            }
        }
    }
    let mut all = BTreeMap::new();
    add(folder, folder, &mut all);
    all
}

/// Runs device 0's sidecar on `folder` until it ends by itself.
fn run_on(site: &Site, folder: &Path, more: &[(&str, &str)]) -> Output {
    let mut command = quorate();
    command
        .arg("run")
        .envs(site.environment(0))
        .env("QUORATE_STORAGE__PATH", folder)
        .env("QUORATE_CONTROL__SOCKET", "off")
        .envs(more.iter().copied())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("starts");
    ended(&mut child);
    child.wait_with_output().expect("has ended")
}

#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    assert!(output.stdout.is_empty());
}

/// A copy of the used folder with a fault in it: the sidecar says so, keeps it as it was, and begins anew.
#[track_caller]
fn quarantined(damage: impl FnOnce(&Path), words: &[&str]) {
    let mut site = Site::new();
    let folder = site.data(0);
    used_folder(&folder);
    damage(&folder);
    let before = contents(&folder);
    for life in 0..2 {
        site.start(0);
        site.up(0);
        let shown = site.condition(0, "store.quarantined");
        let kept: Vec<PathBuf> = quorate::raft::log::quarantine::list(&folder);
        assert_eq!(kept.len(), 1, "life {life}");
        assert!(shown.contains(&kept[0].display().to_string()), "{shown}");
        let story = fs::read_to_string(kept[0].join("found.txt")).expect("tells its story");
        for word in words {
            assert!(story.contains(word) && shown.contains(word), "no {word:?} in {story} or {shown}");
        }
        let after = contents(&kept[0]);
        for (path, content) in before.iter().filter(|(path, _)| is_evidence(path)) {
            assert!(after.get(path) == Some(content), "{} was changed", path.display());
        }
        site.signal(0, Signal::TERM);
        assert_eq!(site.left(0).code(), Some(0), "{}", site.log(0));
    }
    let log = site.log(0);
    assert!(log.contains("the store is damaged") && !log.contains("panicked"), "{log}");
}

fn is_evidence(path: &Path) -> bool {
    ["store", "mark", "identity.json"].iter().any(|name| path.starts_with(name))
}

#[test]
fn missing_a_file_and_not_writable() {
    let site = Site::new();
    let place = tempfile::tempdir().expect("a folder");
    let missing = place.path().join("nothing");
    refused(
        &run_on(&site, &missing, &[]),
        78,
        &["does not exist", "mkdir -p", &missing.display().to_string()],
    );
    assert!(!missing.exists(), "it is not made: the volume may only not be mounted yet");
    let file = place.path().join("file");
    fs::write(&file, "x").expect("writes");
    refused(&run_on(&site, &file, &[]), 78, &["is not a folder", "storage.path"]);
    assert_eq!(fs::read(&file).expect("reads"), b"x");
    // Nobody can make files there, root included.
    refused(
        &run_on(&site, Path::new("/proc/self"), &[]),
        78,
        &["/proc/self cannot be used", "mount options"],
    );
    let locked = place.path().join("locked");
    fs::create_dir(&locked).expect("makes");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).expect("sets");
    if rustix::process::geteuid().is_root() {
        eprintln!("not tested: a folder that this user may not write, because root may write everywhere");
    } else {
        refused(&run_on(&site, &locked, &[]), 78, &["cannot be used", "ermission denied"]);
    }
}

/// Rights that are missing, or a disk that answers with errors: what cannot be looked at is not lost, and nothing is changed.
#[test]
fn a_store_that_cannot_be_looked_at() {
    let site = Site::new();
    let folder = site.data(0);
    used_folder(&folder);
    let (store, aside) = (folder.join("store"), folder.join("aside"));
    fs::rename(&store, &aside).expect("renames");
    // A link to itself: an error that root gets as well.
    std::os::unix::fs::symlink("store", &store).expect("links");
    let identity = fs::read(folder.join("identity.json")).expect("reads");
    refused(&run_on(&site, &folder, &[]), 78, &[&folder.display().to_string(), "cannot be used", "rights"]);
    assert_eq!(fs::read(folder.join("identity.json")).expect("reads"), identity);
    assert!(quorate::raft::log::quarantine::list(&folder).is_empty());
    fs::remove_file(&store).expect("removes");
    fs::rename(&aside, &store).expect("renames");
    let before = contents(&store);
    refused(&run_on(&site, &folder, &[("IOTEDGE_DEVICEID", "edge-2")]), 78, &["belongs to device edge-1"]);
    assert_eq!(contents(&store), before);
}

#[test]
fn of_another_device_or_site() {
    let site = Site::new();
    let place = tempfile::tempdir().expect("a folder");
    let folder = place.path().join("data");
    used_folder(&folder);
    let before = contents(&folder);
    refused(
        &run_on(&site, &folder, &[("IOTEDGE_DEVICEID", "edge-2")]),
        78,
        &["belongs to device edge-1 of site plant-7", "storage.path"],
    );
    refused(
        &run_on(&site, &folder, &[("QUORATE_SITE__ID", "plant-8")]),
        78,
        &["belongs to device edge-1 of site plant-7"],
    );
    refused(
        &run_on(&site, &folder, &[("IOTEDGE_DEVICEID", "edge-4")]),
        78,
        &["edge-4", "site.members", "edge-1"],
    );
    assert_eq!(contents(&folder), before);
}

#[test]
fn in_use_by_another_sidecar() {
    let mut site = Site::new();
    site.start(0);
    site.up(0);
    let other = Site::new();
    let more: Vec<(&str, String)> =
        other.environment(0).into_iter().filter(|(key, _)| key.ends_with("LISTEN")).collect();
    let more: Vec<(&str, &str)> = more.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let folder = site.data(0);
    let output = run_on(&site, &folder, &more);
    // A restart helps as soon as the other one has gone.
    refused(&output, 2, &["is in use by another sidecar", &folder.display().to_string()]);
    assert!(site.runs(0), "the first one is not disturbed");
    site.signal(0, Signal::TERM);
    assert_eq!(site.left(0).code(), Some(0));
    site.start(0);
    site.up(0);
}

#[test]
fn store_truncated() {
    for part in [0, 1, 2] {
        quarantined(
            |folder| {
                let db = fs::File::options().write(true).open(folder.join("store/db")).expect("opens");
                let length = db.metadata().expect("has some").len();
                db.set_len(length * part / 3).expect("cuts");
            },
            &[],
        );
    }
}

#[test]
fn store_bit_flipped() {
    // Where the store holds this device's words: one flipped bit in each copy of them.
    for word in [b"edge-1".as_slice(), b"\"command\"", b"stop_receipt"] {
        quarantined(
            |folder| {
                let db =
                    fs::File::options().read(true).write(true).open(folder.join("store/db")).expect("opens");
                let bytes = fs::read(folder.join("store/db")).expect("reads");
                let places: Vec<usize> =
                    (0..bytes.len() - word.len()).filter(|at| bytes[*at..].starts_with(word)).collect();
                assert!(!places.is_empty(), "the store speaks of {}", word.escape_ascii());
                for at in places {
                    db.write_all_at(&[bytes[at] ^ 4], at as u64).expect("flips");
                }
            },
            &[],
        );
    }
}

#[test]
fn any_flipped_bit_is_noticed_or_does_not_matter() {
    const SEED: u64 = 4711;
    let site = Site::new();
    let mut dice = quorate::dice::Dice::new(SEED);
    for round in 0..12 {
        let place = tempfile::tempdir().expect("a folder");
        let folder = place.path().join("data");
        used_folder(&folder);
        let mut bytes = fs::read(folder.join("store/db")).expect("reads");
        // Where something is: most of the file may be padding.
        let at = loop {
            let at = usize::try_from(dice.throw() % bytes.len() as u64).expect("small");
            if bytes[at] != 0 {
                break at;
            }
        };
        bytes[at] ^= 1 << (dice.throw() % 8);
        fs::write(folder.join("store/db"), &bytes).expect("flips");
        let before = contents(&folder);
        let mut child = quorate();
        let mut child = child
            .arg("run")
            .envs(site.environment(0))
            .env("QUORATE_STORAGE__PATH", &folder)
            .env("QUORATE_CONTROL__SOCKET", "off")
            .env("QUORATE_PEER__LISTEN", "127.0.0.1:0")
            .env("QUORATE_HTTP__LISTEN", "127.0.0.1:0")
            .env("QUORATE_CONTROL__LISTEN", "off")
            .stderr(fs::File::create(place.path().join("log")).expect("makes"))
            .spawn()
            .expect("starts");
        let log = || fs::read_to_string(place.path().join("log")).expect("reads");
        let what = format!("round {round} of seed {SEED}: byte {at}");
        let status = until("a sidecar to run or to end", || {
            let ended = child.try_wait().expect("is ours");
            (ended.is_some() || log().contains("status page, health")).then_some(ended)
        });
        assert_eq!(status, None, "{what}: {}", log());
        super::site::send(child.id(), Signal::TERM);
        assert_eq!(ended(&mut child).code(), Some(0), "{what}: {}", log());
        if let Some(kept) = quorate::raft::log::quarantine::list(&folder).first() {
            let after = contents(kept);
            for (path, content) in before.iter().filter(|(path, _)| is_evidence(path)) {
                assert!(after.get(path) == Some(content), "{what}: {} was changed", path.display());
            }
        }
        assert!(!log().contains("panicked"), "{what}: {}", log());
    }
}

#[test]
fn mark_gone_or_broken() {
    quarantined(|folder| fs::remove_file(folder.join("mark")).expect("removes"), &["mark is gone"]);
    quarantined(|folder| fs::write(folder.join("mark"), vec![7; 8192]).expect("writes"), &["mark"]);
}

#[test]
fn store_gone() {
    quarantined(|folder| fs::remove_dir_all(folder.join("store")).expect("removes"), &["store/db is gone"]);
}

#[test]
fn identity_gone_or_broken() {
    quarantined(
        |folder| fs::remove_file(folder.join("identity.json")).expect("removes"),
        &["identity.json is gone"],
    );
    quarantined(
        |folder| fs::write(folder.join("identity.json"), "{\"format\": ").expect("writes"),
        &["identity.json cannot be read"],
    );
}

#[test]
fn written_by_a_newer_version() {
    let site = Site::new();
    let place = tempfile::tempdir().expect("a folder");
    let folder = place.path().join("data");
    used_folder(&folder);
    fs::write(folder.join("identity.json"), "{\"format\": 9, \"all\": \"else\"}").expect("writes");
    let before = contents(&folder);
    refused(&run_on(&site, &folder, &[]), 78, &["newer version (format 9)", "deploy/README.md"]);
    assert_eq!(contents(&folder), before);
}

#[test]
fn an_older_store_put_back_is_noticed() {
    // What a restored backup of the store alone looks like: whole, and behind what was promised since.
    let mut site = Site::new();
    site.start(0);
    site.up(0);
    site.signal(0, Signal::TERM);
    site.left(0);
    let earlier = contents(&site.data(0).join("store"));
    quarantined(
        |folder| {
            fs::remove_dir_all(folder.join("store")).expect("removes");
            for (path, content) in &earlier {
                let path = folder.join("store").join(path);
                fs::create_dir_all(path.parent().expect("has one")).expect("makes");
                fs::write(path, content).expect("writes");
            }
        },
        &["once held"],
    );
}

#[test]
fn an_emptied_device_votes_again_without_anybodys_help() {
    let (mut site, owner, epoch) = Site::running(Plan::default());
    let [emptied, third] = [(owner + 1) % 3, (owner + 2) % 3];
    site.signal(emptied, Signal::KILL);
    site.left(emptied);
    fs::remove_dir_all(site.data(emptied)).expect("removes");
    fs::create_dir(site.data(emptied)).expect("makes");
    site.start(emptied);
    let told = site.condition(owner, "member.rejoining");
    assert!(told.contains(&site.devices[emptied].id), "{told}");
    site.reports(owner, "three voters", |r| {
        r.devices_may_fail == 1 && r.conditions.iter().all(|c| c.name != "member.rejoining")
    });
    assert_eq!(site.owner(0), (owner, epoch), "no ownership change");
    // Said as people say it.
    for n in 0..3 {
        let log = site.log(n);
        assert!(!log.contains("LogId") && !log.contains("Some("), "{log}");
    }
    // Without its vote there is no majority now.
    site.signal(third, Signal::KILL);
    site.left(third);
    let to = site.devices[emptied].id.clone();
    let output = site.ask(owner, &["transfer", "--to", &to]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(site.owner_among(&[owner, emptied], epoch).0, emptied);
    site.runs_without_overlap();
    // It is the same node after a restart.
    site.signal(emptied, Signal::TERM);
    assert_eq!(site.left(emptied).code(), Some(0));
    site.start(emptied);
    site.reports(emptied, "a majority", |r| r.quorum && r.owner.known);
}
