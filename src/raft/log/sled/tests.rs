use std::os::unix::fs::FileExt;

use super::*;
use crate::clock::BootClock;

fn clock() -> Arc<dyn Clock> {
    Arc::new(BootClock)
}

fn id(index: u64) -> StoredLogId {
    StoredLogId { term: 1, node: 2, index }
}

fn entry(index: u64) -> (StoredLogId, Bytes) {
    let at = openraft::LogId::new(openraft::CommittedLeaderId::new(1, 2), index);
    let entry = crate::raft::types::Entry { log_id: at, payload: openraft::EntryPayload::Blank };
    (id(index), super::super::encode(&entry).expect("encodes"))
}

fn run(disk: &SledDisk, change: Change) {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(disk.write(change))
        .expect("writes");
}

/// A store with a vote and the entries 0 to 40.
fn filled(folder: &Path) {
    let disk = SledDisk::create(folder, entry(0), clock(), Arc::new(|_| {})).expect("creates");
    run(&disk, Change::Vote(StoredVote { term: 3, node: 2, committed: true }));
    for index in 1..=40 {
        run(&disk, Change::Append(vec![entry(index)]));
    }
    close(disk, folder);
}

/// Drops the disk and waits until sled has let go of its files.
fn close(disk: SledDisk, folder: &Path) {
    drop(disk);
    let file = File::open(folder.join("store").join("db")).expect("opens");
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("locks");
}

#[test]
fn what_was_written_is_read_back() {
    let dir = tempfile::tempdir().expect("a folder");
    filled(dir.path());
    let disk = SledDisk::open(dir.path(), clock(), Arc::new(|_| {})).expect("opens");
    let contents = disk.contents().expect("reads");
    assert_eq!(contents.vote, Some(StoredVote { term: 3, node: 2, committed: true }));
    assert_eq!(contents.entries.len(), 41);
    assert_eq!(contents.entries[&7], entry(7).1);
}

/// What a new leader has sent is never durable without the news that it leads.
#[test]
fn the_news_that_a_vote_has_won_is_written_with_what_follows() {
    let dir = tempfile::tempdir().expect("a folder");
    let vote = |committed| StoredVote { term: 3, node: 2, committed };
    let disk = SledDisk::create(dir.path(), entry(0), clock(), Arc::new(|_| {})).expect("creates");
    run(&disk, Change::Vote(vote(false)));
    run(&disk, Change::Vote(vote(true)));
    run(&disk, Change::Append(vec![entry(1)]));
    close(disk, dir.path());
    let disk = SledDisk::open(dir.path(), clock(), Arc::new(|_| {})).expect("opens");
    assert_eq!(disk.contents().expect("reads").vote, Some(vote(true)));
}

#[test]
fn truncate_and_purge_do_what_memory_does() {
    let dir = tempfile::tempdir().expect("a folder");
    let disk = SledDisk::create(dir.path(), entry(0), clock(), Arc::new(|_| {})).expect("creates");
    let mut plain = disk.contents().expect("reads");
    let meta = openraft::SnapshotMeta {
        last_log_id: Some(openraft::LogId::new(openraft::CommittedLeaderId::new(1, 2), 5)),
        ..Default::default()
    };
    let snapshot = super::super::encode_snapshot(&meta, b"record");
    for change in [
        Change::Append((1..=20).map(entry).collect()),
        Change::TruncateFrom(15, Some(id(14))),
        Change::Append(vec![entry(15)]),
        Change::Snapshot(snapshot),
        Change::PurgeUpTo(id(5)),
    ] {
        run(&disk, change.clone());
        plain.apply(change);
    }
    close(disk, dir.path());
    let read =
        SledDisk::open(dir.path(), clock(), Arc::new(|_| {})).expect("opens").contents().expect("reads");
    assert_eq!((read.vote, read.purged, read.snapshot), (plain.vote, plain.purged, plain.snapshot));
    assert_eq!(read.entries, plain.entries);
}

#[test]
fn a_second_process_is_kept_out() {
    let dir = tempfile::tempdir().expect("a folder");
    filled(dir.path());
    let _first = SledDisk::open(dir.path(), clock(), Arc::new(|_| {})).expect("opens");
    assert!(matches!(SledDisk::open(dir.path(), clock(), Arc::new(|_| {})), Err(Error::InUse)));
}

#[test]
fn a_store_behind_its_mark_is_damaged() {
    let dir = tempfile::tempdir().expect("a folder");
    filled(dir.path());
    let ahead = Mark { vote: Some(StoredVote { term: 4, node: 1, committed: false }), last: Some(id(40)) };
    MarkFile::open(&dir.path().join("mark")).expect("opens").set(ahead).expect("writes");
    let error = SledDisk::open(dir.path(), clock(), Arc::new(|_| {})).expect_err("the vote went back");
    assert!(error.to_string().contains("vote"), "{error}");
    let ahead = Mark { vote: Some(StoredVote { term: 3, node: 2, committed: true }), last: Some(id(41)) };
    MarkFile::open(&dir.path().join("mark")).expect("opens").set(ahead).expect("writes");
    let error = SledDisk::open(dir.path(), clock(), Arc::new(|_| {})).expect_err("the log went back");
    assert!(error.to_string().contains("entry 41"), "{error}");
    let ahead = Mark { last: Some(StoredLogId { term: 2, ..id(40) }), ..ahead };
    MarkFile::open(&dir.path().join("mark")).expect("opens").set(ahead).expect("writes");
    let error = SledDisk::open(dir.path(), clock(), Arc::new(|_| {})).expect_err("the last entry went back");
    assert!(error.to_string().contains("entry 40 is older"), "{error}");
}

/// After a crash between the store's write and the mark's, the device acts on what it reads. From then on it is missed.
#[test]
fn what_was_read_is_promised() {
    let dir = tempfile::tempdir().expect("a folder");
    filled(dir.path());
    let path = dir.path().join("mark");
    let written = MarkFile::open(&path).expect("opens").mark();
    let behind = Mark { vote: None, last: Some(id(7)) };
    MarkFile::open(&path).expect("opens").set(behind).expect("writes");
    close(SledDisk::open(dir.path(), clock(), Arc::new(|_| {})).expect("opens"), dir.path());
    assert_eq!(MarkFile::open(&path).expect("opens").mark(), written);
}

/// A leader that has sent its snapshot counts on it: a store from before must not come back.
#[test]
fn an_installed_snapshot_is_promised() {
    let dir = tempfile::tempdir().expect("a folder");
    filled(dir.path());
    let before = tempfile::tempdir().expect("a folder");
    copy_folder(&dir.path().join("store"), &before.path().join("store")).expect("copies");
    let disk = SledDisk::open(dir.path(), clock(), Arc::new(|_| {})).expect("opens");
    let meta = openraft::SnapshotMeta {
        last_log_id: Some(openraft::LogId::new(openraft::CommittedLeaderId::new(1, 2), 90)),
        ..Default::default()
    };
    run(&disk, Change::Snapshot(super::super::encode_snapshot(&meta, b"record")));
    close(disk, dir.path());
    let (store, after) = (dir.path().join("store"), tempfile::tempdir().expect("a folder"));
    let put_back = |from: &Path| {
        fs::remove_dir_all(&store).expect("removes");
        copy_folder(from, &store).expect("copies");
    };
    copy_folder(&store, &after.path().join("store")).expect("copies");
    let went_back = || {
        put_back(&before.path().join("store"));
        let error = SledDisk::open(dir.path(), clock(), Arc::new(|_| {})).expect_err("it went back");
        assert!(error.to_string().contains("entry 90"), "{error}");
    };
    went_back();
    put_back(&after.path().join("store"));
    // The log before it is removed a moment later, or at the next start.
    let disk =
        SledDisk::open(dir.path(), clock(), Arc::new(|_| {})).expect("a log that ends before its snapshot");
    run(&disk, Change::PurgeUpTo(id(90)));
    close(disk, dir.path());
    close(SledDisk::open(dir.path(), clock(), Arc::new(|_| {})).expect("opens"), dir.path());
    went_back();
}

#[test]
fn what_is_gone_is_damaged_and_not_empty() {
    for gone in ["mark", "store/db"] {
        let dir = tempfile::tempdir().expect("a folder");
        filled(dir.path());
        fs::remove_file(dir.path().join(gone)).expect("removes");
        assert!(
            matches!(SledDisk::open(dir.path(), clock(), Arc::new(|_| {})), Err(Error::Damaged(_))),
            "{gone}"
        );
    }
}

/// One flipped bit anywhere in sled's file: either it does not matter, or it is noticed. It must never give a store
/// that has forgotten something. sled alone fails this in most trials.
#[test]
fn no_flipped_bit_brings_back_an_older_store() {
    let dir = tempfile::tempdir().expect("a folder");
    filled(dir.path());
    let healthy = {
        let disk = SledDisk::open(dir.path(), clock(), Arc::new(|_| {})).expect("opens");
        let contents = disk.contents().expect("reads");
        close(disk, dir.path());
        contents
    };
    let original = fs::read(dir.path().join("store/db")).expect("reads");
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let used = original.iter().rposition(|b| *b != 0).expect("not empty") + 1;
    let mut noticed = 0;
    for trial in 0..120u64 {
        let copy = tempfile::tempdir().expect("a folder");
        fs::create_dir(copy.path().join("store")).expect("creates");
        for name in ["mark", "store/db", "store/conf"] {
            fs::copy(dir.path().join(name), copy.path().join(name)).expect("copies");
        }
        let at = crate::id::fnv1a(&trial.to_le_bytes()) % (used as u64 * 8);
        let file = File::options().write(true).open(copy.path().join("store/db")).expect("opens");
        let byte = usize::try_from(at / 8).expect("small");
        file.write_all_at(&[original[byte] ^ (1 << (at % 8))], at / 8).expect("flips");
        match SledDisk::open(copy.path(), clock(), Arc::new(|_| {})) {
            Err(Error::Damaged(_)) => noticed += 1,
            Err(other) => panic!("bit {at}: {other}"),
            Ok(disk) => {
                let read = disk.contents().expect("reads");
                assert_eq!((read.vote, read.entries), (healthy.vote, healthy.entries.clone()), "bit {at}");
                close(disk, copy.path());
            }
        }
    }
    std::panic::set_hook(quiet);
    assert!(noticed > 20, "only {noticed} of 120 flips were noticed: the flips miss the data");
}

#[test]
fn after_an_error_nothing_more_is_written() {
    let dir = tempfile::tempdir().expect("a folder");
    let disk = SledDisk::create(dir.path(), entry(0), clock(), Arc::new(|_| {})).expect("creates");
    // A handle that cannot be synced makes the first write fail, as a dying disk does.
    let mut writer = Writer { file: File::open("/dev/null").expect("opens"), ..writer_of(disk, dir.path()) };
    assert!(writer.write(Change::Append(vec![entry(1)])).is_err());
    let disk = writer.start(clock(), Arc::new(|_| {})).expect("starts");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let first = runtime.block_on(disk.write(Change::Append(vec![entry(2)]))).expect_err("fails");
    let second = runtime.block_on(disk.write(Change::Append(vec![entry(3)]))).expect_err("fails");
    assert!(second.to_string().contains(&first.to_string()), "{second}");
}

fn writer_of(disk: SledDisk, folder: &Path) -> Writer {
    close(disk, folder);
    Writer::open(folder, MarkFile::open(&folder.join("mark")).expect("opens")).expect("opens")
}

/// 20,000 appends with a purge now and then stay small on disk.
#[test]
fn the_store_stays_small() {
    let dir = tempfile::tempdir().expect("a folder");
    let disk = SledDisk::create(dir.path(), entry(0), clock(), Arc::new(|_| {})).expect("creates");
    let meta = |index| openraft::SnapshotMeta {
        last_log_id: Some(openraft::LogId::new(openraft::CommittedLeaderId::new(1, 2), index)),
        ..Default::default()
    };
    for batch in 0..200u64 {
        run(&disk, Change::Append((1 + batch * 100..=(batch + 1) * 100).map(entry).collect()));
        run(&disk, Change::Snapshot(super::super::encode_snapshot(&meta((batch + 1) * 100), &[7; 12_000])));
        run(&disk, Change::PurgeUpTo(id((batch + 1) * 100 - 50)));
    }
    close(disk, dir.path());
    let size: u64 = walk(dir.path());
    assert!(size < 16 << 20, "the store has grown to {size} bytes");
    SledDisk::open(dir.path(), clock(), Arc::new(|_| {})).expect("opens");
}

fn walk(folder: &Path) -> u64 {
    fs::read_dir(folder)
        .expect("lists")
        .map(|e| {
            let e = e.expect("an entry");
            if e.path().is_dir() { walk(&e.path()) } else { e.metadata().expect("a size").len() }
        })
        .sum()
}

#[test]
fn a_value_that_does_not_match_its_checksum_is_refused() {
    let good = seal(b"key", b"content");
    assert_eq!(unseal(b"key", &good), Some(b"content".as_slice()));
    assert_eq!(unseal(b"kez", &good), None, "a value that ended up under another key");
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(unseal(b"key", &bad), None, "bit {bit}");
    }
    assert_eq!(unseal(b"key", b"abc"), None);
}
