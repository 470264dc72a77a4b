use super::*;

const UNIFIED: &str =
    "29 23 0:26 / /sys/fs/cgroup rw,nosuid,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate";

#[test]
fn a_service_with_a_cgroup_of_its_own() {
    let own = "0::/system.slice/quorate.service\n";
    let at = Path::new("/sys/fs/cgroup/system.slice/quorate.service");
    assert_eq!(place(own, UNIFIED).as_deref(), Some(at));
}

#[test]
fn both_hierarchies_at_once() {
    let own = "4:memory:/x\n1:cpu:/\n0::/\n";
    let mounts = "31 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  32 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    assert_eq!(place(own, mounts).as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
}

#[test]
fn a_container_that_may_not_write() {
    for mounts in [
        "29 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw",
        "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup ro",
        "29 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw",
        "rubbish - cgroup2",
        "",
    ] {
        assert_eq!(place("0::/\n", mounts), None, "{mounts}");
    }
}

#[test]
fn a_mount_that_shows_a_part() {
    let mounts = "29 23 0:26 /docker/ab /sys/fs/my\\040cgroup rw - cgroup2 cgroup rw";
    let at = |own: &str| place(own, mounts);
    assert_eq!(at("0::/docker/ab\n").as_deref(), Some(Path::new("/sys/fs/my cgroup")));
    assert_eq!(at("0::/docker/ab/c\n").as_deref(), Some(Path::new("/sys/fs/my cgroup/c")));
    assert_eq!(at("0::/docker/abc\n"), None);
    assert_eq!(at("0::/\n"), None);
}

#[test]
fn outside_of_the_namespace_or_without_any() {
    assert_eq!(place("0::/../other\n", UNIFIED), None);
    assert_eq!(place("1:cpu:/\n", UNIFIED), None);
    assert_eq!(place("", UNIFIED), None);
}

#[test]
fn only_whole_names_count() {
    let name = name("fe01-2a");
    assert!(is_in("1:cpu:/\n0::/a/quorate-fe01-2a\n", &name));
    assert!(is_in("0::/a/quorate-fe01-2a/below (deleted)\n", &name));
    assert!(!is_in("0::/a/quorate-fe01-2ab\n", &name));
    assert!(!is_in("1:cpu:/quorate-fe01-2a\n0::/\n", &name));
}

/// A cgroup with somebody in it, where this machine lets the test make one.
#[expect(clippy::disallowed_methods, reason = "somebody to kill")]
fn with_a_process(mark: &str) -> Option<(Cgroup, std::process::Child)> {
    let cgroup = Cgroup::make(mark).ok()?;
    let child = std::process::Command::new("sleep").arg("1000").spawn().expect("starts");
    write(&cgroup.dir().join("cgroup.procs"), &child.id().to_string()).expect("moves");
    assert!(cgroup.populated());
    Some((cgroup, child))
}

#[test]
fn it_is_emptied_at_once_and_taken_away() {
    let Some((cgroup, mut child)) = with_a_process("unit-a") else { return };
    cgroup.kill();
    child.wait().expect("ends");
    assert!(!cgroup.populated());
    cgroup.remove();
    assert!(!cgroup.dir().exists());
}

#[test]
fn it_is_emptied_by_an_old_kernel_and_used_again() {
    let Some((cgroup, mut child)) = with_a_process("unit-b") else { return };
    fs::create_dir(cgroup.dir().join("below")).expect("makes");
    cgroup.kill_each();
    child.wait().expect("ends");
    assert!(!cgroup.populated());
    cgroup.thaw();
    drop(cgroup);
    let (cgroup, mut child) = with_a_process("unit-b").expect("takes over what is there");
    cgroup.kill();
    child.wait().expect("ends");
    cgroup.remove();
    assert!(!cgroup.dir().exists());
}

/// With plain files in place of the kernel's.
#[test]
fn a_limit_is_written_where_the_controller_is_and_refused_where_it_is_not() {
    let parent = tempfile::tempdir().expect("a folder");
    let dir = parent.path().join("quorate-1-2");
    fs::create_dir(&dir).expect("makes it");
    let cgroup = Cgroup { dir: dir.clone(), name: "quorate-1-2".into() };
    let line: Line = ("memory", "memory.max", "1048576".into());
    let why = cgroup.limit(&line).expect_err("there is no such controller");
    assert!(why.contains("no controller memory"), "{why}");
    // It is enabled above first; here no kernel makes the file then.
    fs::write(parent.path().join("cgroup.controllers"), "cpu memory pids\n").expect("writes");
    fs::write(parent.path().join("cgroup.subtree_control"), "").expect("writes");
    let why = cgroup.limit(&line).expect_err("there is no file");
    assert!(why.contains("memory.max"), "{why}");
    let enabled = fs::read_to_string(parent.path().join("cgroup.subtree_control")).expect("reads");
    assert_eq!(enabled, "+memory");
    fs::write(dir.join("memory.max"), "max").expect("writes");
    assert_eq!(cgroup.limit(&line), Ok(()));
    assert_eq!(fs::read_to_string(dir.join("memory.max")).expect("reads"), "1048576");
}

#[test]
fn the_sidecar_makes_room_only_if_it_is_alone() {
    let parent = tempfile::tempdir().expect("a folder");
    fs::write(parent.path().join("cgroup.procs"), "1\n2\n").expect("writes");
    let why = make_room(parent.path()).expect_err("others are there");
    assert!(why.contains("must hold nothing else"), "{why}");
    assert!(!parent.path().join(SIDECAR).exists());
}
