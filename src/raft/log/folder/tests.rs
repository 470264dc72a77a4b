use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::{
    clock::BootClock,
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
    open(path, site, &DeviceId::new(device).expect("a name"), Arc::new(BootClock), Box::new(|_| {}))
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
fn a_store_is_not_opened_for_other_members_or_roles() {
    let dir = tempfile::tempdir().expect("a folder");
    let plant = site("plant-7", 400);
    drop(open_as(dir.path(), "edge-1", &plant).expect("makes it"));
    let mut witness = plant.clone();
    witness.members[2].role = Role::Witness;
    let mut fewer = plant.clone();
    fewer.members.pop();
    for other in [witness, fewer] {
        let error = reopen(dir.path(), "edge-1", &other).expect_err("other members");
        assert!(matches!(error, Error::OtherMembers(_)), "{error}");
    }
    let mut moved = plant;
    moved.members.reverse();
    moved.members[0].address = "10.0.0.99:7600".into();
    reopen(dir.path(), "edge-1", &moved).expect("order and addresses may change");
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

#[test]
fn a_lost_store_is_damage_and_never_a_first_start() {
    let plant = site("plant-7", 400);
    for gone in ["store", "mark", "identity.json"] {
        let dir = tempfile::tempdir().expect("a folder");
        drop(open_as(dir.path(), "edge-1", &plant).expect("makes it"));
        drop(reopen(dir.path(), "edge-1", &plant).expect("opens it"));
        let path = dir.path().join(gone);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("removes");
        for _ in 0..2 {
            assert!(matches!(open_as(dir.path(), "edge-1", &plant), Err(Error::Damaged(..))), "{gone}");
        }
    }
}

#[test]
fn a_first_start_that_was_cut_short_is_repeated() {
    let dir = tempfile::tempdir().expect("a folder");
    let plant = site("plant-7", 400);
    let identity = Identity {
        format: 1,
        site: plant.id.clone(),
        device: DeviceId::new("edge-1").expect("a name"),
        ready: false,
        refusal_us: 1,
        members: None,
    };
    write(dir.path(), &identity).expect("writes");
    fs::create_dir(dir.path().join("store")).expect("creates");
    fs::write(dir.path().join("store/db"), "half").expect("writes");
    fs::write(dir.path().join("mark"), "half").expect("writes");
    assert!(open_as(dir.path(), "edge-1", &plant).expect("makes it").first_start);
}

#[test]
fn a_shorter_window_does_not_shorten_the_wait_after_boot() {
    let dir = tempfile::tempdir().expect("a folder");
    let long = open_as(dir.path(), "edge-1", &site("plant-7", 1000)).expect("makes it").boot_refusal;
    assert_eq!(reopen(dir.path(), "edge-1", &site("plant-7", 400)).expect("opens it").boot_refusal, long);
}
