use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::{
    clock::BootClock,
    raft::log::Disk as _,
    site::{Member, Role},
    timing::{Settings, Timing},
};

fn site(name: &str, hold_ms: u64) -> Site {
    let member = |n: u8| Member {
        device: DeviceId::new(format!("edge-{n}")).expect("a name"),
        address: format!("10.0.0.{n}:7600"),
        role: Role::Voter,
    };
    let settings = Settings { hold: Duration::from_millis(hold_ms), ..Settings::default() };
    Site {
        id: SiteId::new(name).expect("a name"),
        members: vec![member(1), member(2), member(3)],
        timing: Timing::new(&settings).expect("consistent"),
    }
}

fn open_as(path: &Path, device: &str, site: &Site) -> Result<Folder, Error> {
    open(path, site, &DeviceId::new(device).expect("a name"), Arc::new(BootClock), 7, Arc::new(|_| {}))
}

fn reopen(path: &Path, device: &str, site: &Site) -> Result<Folder, Error> {
    // sled lets go of its files a moment after its handle is dropped.
    let file = File::open(path.join("store/db")).expect("opens");
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("locks");
    drop(file);
    open_as(path, device, site)
}

#[test]
fn first_start_and_every_later_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let plant = site("plant-7", 400);
    assert!(open_as(dir.path(), "edge-1", &plant).expect("makes it").first_start);
    assert!(!reopen(dir.path(), "edge-1", &plant).expect("opens it").first_start);
}

#[test]
fn a_folder_of_somebody_else_is_refused_and_named() {
    let dir = tempfile::tempdir().expect("a folder");
    drop(open_as(dir.path(), "edge-1", &site("plant-7", 400)).expect("makes it"));
    let error = reopen(dir.path(), "edge-2", &site("plant-7", 400)).expect_err("another device");
    assert!(error.to_string().contains("belongs to device edge-1 of site plant-7"), "{error}");
    let error = reopen(dir.path(), "edge-1", &site("plant-8", 400)).expect_err("another site");
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
}

#[test]
fn a_changed_member_list_is_refused_and_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut plant = site("plant-7", 400);
    let first = open_as(dir.path(), "edge-1", &plant).expect("makes it");
    let number = first.store;
    drop(first);
    plant.members.reverse();
    assert_eq!(reopen(dir.path(), "edge-1", &plant).expect("the order means nothing").store, number);
    plant.members.pop();
    let error = reopen(dir.path(), "edge-1", &plant).expect_err("one is missing");
    assert!(error.to_string().contains("was made for the members edge-1"), "{error}");
}

#[test]
fn missing_file_and_read_only_are_told_apart() {
    let dir = tempfile::tempdir().expect("a folder");
    let plant = site("plant-7", 400);
    assert!(matches!(open_as(&dir.path().join("no"), "edge-1", &plant), Err(Error::Missing(_))));
    let file = dir.path().join("file");
    fs::write(&file, "x").expect("writes");
    assert!(matches!(open_as(&file, "edge-1", &plant), Err(Error::NotAFolder(_))));
    if !rustix::process::geteuid().is_root() {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).expect("sets");
        assert!(matches!(open_as(dir.path(), "edge-1", &plant), Err(Error::NotWritable(..))));
    }
}

/// A store that has voted in term 9.
fn voted(path: &Path, plant: &Site) {
    let folder = open_as(path, "edge-1", plant).expect("makes it");
    let vote = super::super::StoredVote { term: 9, node: 1, committed: false };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let write = super::super::Disk::write(&folder.disk, super::super::Change::Vote(vote));
    runtime.block_on(write).expect("writes");
    drop(folder);
    let file = File::open(path.join("store/db")).expect("opens");
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("locks");
}

fn spoil(path: &Path, what: &str) {
    let path = path.join(what);
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("removes");
}

#[test]
fn a_lost_store_is_quarantined_and_never_a_first_start() {
    let plant = site("plant-7", 400);
    for gone in ["store", "mark", "identity.json"] {
        let dir = tempfile::tempdir().expect("a folder");
        voted(dir.path(), &plant);
        spoil(dir.path(), gone);
        let opened = open(
            dir.path(),
            &plant,
            &"edge-1".parse().expect("a name"),
            Arc::new(BootClock),
            8,
            Arc::new(|_| {}),
        );
        let folder = opened.expect("begins anew");
        assert!(!folder.first_start, "{gone}");
        assert_eq!(folder.store, StoreId { number: 8, later: true }, "{gone}");
        let amnesia = folder.amnesia.clone().expect("it knows what it has forgotten");
        assert!(amnesia.found.contains(gone), "{gone}: {}", amnesia.found);
        assert_eq!(amnesia.term, 9, "{gone}: either half knows the term");
        assert_eq!(super::super::Disk::contents(&folder.disk).expect("reads").amnesia, folder.amnesia);
        let kept = quarantine::list(dir.path());
        let story = fs::read_to_string(kept[0].join("found.txt")).expect("tells its story");
        assert!(story.contains(&amnesia.found), "{story}");
        for file in ["store/db", "mark", "identity.json"].iter().filter(|f| !f.starts_with(gone)) {
            assert!(kept[0].join(file).exists(), "{gone}: {file} is kept");
        }
        drop(folder);
        let again = reopen(dir.path(), "edge-1", &plant).expect("opens");
        assert_eq!(again.amnesia, Some(amnesia), "{gone}: a restart remembers nothing by itself");
        assert_eq!(quarantine::list(dir.path()).len(), 1);
    }
}

#[test]
fn only_the_newest_three_are_kept_and_the_term_never_goes_back() {
    let plant = site("plant-7", 400);
    let dir = tempfile::tempdir().expect("a folder");
    voted(dir.path(), &plant);
    for round in 1..=5u32 {
        spoil(dir.path(), "mark");
        let folder = open_as(dir.path(), "edge-1", &plant).expect("begins anew");
        assert_eq!(folder.amnesia.as_ref().expect("amnesia").term, 9, "round {round}");
        let kept = quarantine::list(dir.path());
        assert_eq!(kept.len(), usize::try_from(round.min(3)).expect("small"));
        assert!(kept.last().expect("one").display().to_string().ends_with(&format!("-{round}")));
        drop(folder);
        let file = File::open(dir.path().join("store/db")).expect("opens");
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("locks");
    }
}

/// A crash between any two steps of it leaves a device that knows what it is missing.
#[test]
fn a_quarantine_that_was_cut_short_is_no_first_start() {
    let plant = site("plant-7", 400);
    for moved in 0..=2 {
        let dir = tempfile::tempdir().expect("a folder");
        voted(dir.path(), &plant);
        spoil(dir.path(), "store/db");
        let known = match read(dir.path()).expect("reads") {
            Found::Identity(known) => known,
            _ => panic!("it is readable"),
        };
        let amnesia = Amnesia { found: "the first reason".into(), ..Amnesia::default() };
        let place = quarantine::open(dir.path(), &amnesia, "story").expect("makes");
        write(dir.path(), &Identity { ready: false, amnesia: Some(amnesia), ..known }).expect("writes");
        for name in ["store", "mark"].iter().take(moved) {
            fs::rename(dir.path().join(name), place.join(name)).expect("moves");
        }
        let folder = open_as(dir.path(), "edge-1", &plant).expect("begins anew");
        assert_eq!(folder.amnesia.expect("amnesia").found, "the first reason", "{moved} moved");
    }
}

#[test]
fn what_a_newer_version_wrote_is_left_alone() {
    let plant = site("plant-7", 400);
    let dir = tempfile::tempdir().expect("a folder");
    voted(dir.path(), &plant);
    fs::write(dir.path().join("identity.json"), "{\"format\": 9, \"all\": \"else\"}").expect("writes");
    let error = open_as(dir.path(), "edge-1", &plant).expect_err("it is not ours to judge");
    assert!(matches!(error, Error::Newer(_, 9)), "{error}");
    assert!(dir.path().join("mark").exists());
}

#[test]
fn a_first_start_that_was_cut_short_is_repeated() {
    let dir = tempfile::tempdir().expect("a folder");
    let plant = site("plant-7", 400);
    let identity = Identity {
        format: 1,
        site: plant.id.clone(),
        device: DeviceId::new("edge-1").expect("a name"),
        store: 7,
        members: ["edge-1 (voter)", "edge-2 (voter)", "edge-3 (voter)"].map(String::from).to_vec(),
        ready: false,
        refusal_us: 1,
        amnesia: None,
    };
    write(dir.path(), &identity).expect("writes");
    fs::create_dir(dir.path().join("store")).expect("creates");
    fs::write(dir.path().join("store/db"), "half").expect("writes");
    fs::write(dir.path().join("mark"), "half").expect("writes");
    assert!(open_as(dir.path(), "edge-1", &plant).expect("makes it").first_start);
}

#[test]
fn a_store_that_was_never_of_use_can_be_made_anew() {
    let dir = tempfile::tempdir().expect("a folder");
    let plant = site("plant-7", 400);
    let edge_1 = DeviceId::new("edge-1").expect("a name");
    let first = open_as(dir.path(), "edge-1", &plant).expect("makes it");
    assert_eq!(first.store.node(&edge_1), edge_1.first_node());
    assert_eq!(first.disk.contents().expect("reads").entries.len(), 1);
    drop(first);
    start_over(dir.path(), 9, &BootClock).expect("marks it");
    for _ in 0..2 {
        let later = reopen(dir.path(), "edge-1", &plant).expect("makes it anew, and opens it");
        assert_eq!(later.store, StoreId { number: 9, later: true });
        assert_eq!(later.store.node(&edge_1), edge_1.later_node(9));
        assert!(later.disk.contents().expect("reads").entries.is_empty(), "it knows no members");
    }
}

#[test]
fn a_shorter_window_does_not_shorten_the_wait_after_boot() {
    let dir = tempfile::tempdir().expect("a folder");
    let long = open_as(dir.path(), "edge-1", &site("plant-7", 1000)).expect("makes it").boot_refusal;
    assert_eq!(reopen(dir.path(), "edge-1", &site("plant-7", 400)).expect("opens it").boot_refusal, long);
}

#[test]
fn no_flipped_bit_of_the_identity_is_believed() {
    let plant = site("plant-7", 400);
    let dir = tempfile::tempdir().expect("a folder");
    voted(dir.path(), &plant);
    let path = dir.path().join("identity.json");
    let good = fs::read(&path).expect("reads");
    let known = match read(dir.path()).expect("reads") {
        Found::Identity(known) => known,
        _ => panic!("it is readable"),
    };
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bad).expect("writes");
        if let Found::Identity(read) = read(dir.path()).expect("reads") {
            assert_eq!(read, known, "bit {bit}");
        }
    }
}
