//! Crash images: what a power cut, or a bad disk, may leave of a store, opened by the real code.
//!
//! A child makes a real folder with the real store in it, under strace ([`super::tape`]). At every operation of the
//! recording, images of the disk are built: what was not synced is there or not, reordered, torn at 512 bytes; or else
//! the disk lies: bits flip, files end early, writes are repeated late, one file is as it was long ago. Each is opened.
//! After an honest power cut the store must hold what was acknowledged, or that and the change in progress. After a
//! lie it may instead say that it is damaged. It must never panic, and never come back behind what was acknowledged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use super::{
    Change, Contents, Disk as _, StoredLogId, StoredVote, encode, encode_snapshot,
    folder::{self, Error, Folder},
    load_log_id,
    tape::{self, Inode, Model, Op, Piece, TOLD},
};
use crate::{
    clock::{BootClock, Clock},
    dice::Dice,
    epoch::Epoch,
    id::{DeviceId, Incarnation, SiteId},
    ownership::command::{Claim, Command},
    raft::types::{Entry, SnapshotMeta},
    site::{Member, Role, Site},
    timing::{Settings, Timing},
};

/// Tells the child that it is the child, and where to write.
const FOLDER: &str = "QUORATE_TEST_IMAGES_FOLDER";
/// How many images are opened; all kinds in turn.
const COUNT: &str = "QUORATE_CRASH_IMAGES";
const SEED: &str = "QUORATE_CRASH_SEED";
const NAME: &str = "raft::log::images::no_crash_image_brings_back_an_older_store";
const SECTOR: usize = 512;

fn site() -> Site {
    let member = |n: u8| Member {
        device: DeviceId::new(format!("edge-{n}")).expect("a name"),
        address: format!("10.0.0.{n}:7600"),
        role: Role::Voter,
    };
    Site {
        id: SiteId::new("plant-7").expect("a name"),
        members: vec![member(1), member(2), member(3)],
        timing: Timing::new(&Settings::default()).expect("consistent"),
    }
}

fn open(path: &Path) -> Result<Folder, Error> {
    let clock: Arc<dyn Clock> = Arc::new(BootClock);
    let device = DeviceId::new("edge-1").expect("a name");
    folder::open(path, &site(), &device, clock, 7, Arc::new(|_| {}))
}

fn entry(term: u64, index: u64) -> (StoredLogId, Bytes) {
    let id = StoredLogId { term, node: 7, index };
    let claim = Claim {
        device: DeviceId::new("edge-1").expect("a name"),
        incarnation: Incarnation(index),
        base: Epoch::new(index).expect("small"),
        at_unix_ms: 1_700_000_000_000 + index,
        seal: None,
        proof: None,
    };
    let payload = openraft::EntryPayload::Normal(Command::Claim(claim));
    (id, encode(&Entry { log_id: load_log_id(id), payload }).expect("encodes"))
}

/// A life with everything in it that a store meets, long enough that sled uses several segments and uses them again.
fn changes() -> Vec<Change> {
    let vote = |term, committed| Change::Vote(StoredVote { term, node: 7, committed });
    let snapshot = |term, index, size: usize| {
        let meta = SnapshotMeta {
            last_log_id: Some(load_log_id(StoredLogId { term, node: 7, index })),
            ..SnapshotMeta::default()
        };
        let noise: Vec<u8> =
            (0..size).map(|n| (crate::id::fnv1a(&(n + size).to_le_bytes()) & 255) as u8).collect();
        Change::Snapshot(encode_snapshot(&meta, &noise))
    };
    let mut all = Vec::new();
    let (mut term, mut last) = (0, 0);
    for round in 0..12u64 {
        term += 1;
        all.extend([vote(term, false), vote(term, true)]);
        for _ in 0..2 {
            all.push(Change::Append((last + 1..=last + 3).map(|i| entry(term, i)).collect()));
            last += 3;
        }
        if round % 3 == 1 {
            // What a lost leader wrote makes way for its successor's.
            let kept = StoredLogId { term: if last > 4 { term } else { 1 }, node: 7, index: last - 2 };
            all.push(Change::TruncateFrom(last - 1, Some(kept)));
            term += 1;
            all.push(vote(term, true));
            all.push(Change::Append(vec![entry(term, last - 1), entry(term, last)]));
        }
        if round % 2 == 1 {
            all.push(snapshot(term, last - 1, 9_000 + usize::try_from(round).expect("small") * 700));
            all.push(Change::PurgeUpTo(StoredLogId { term, node: 7, index: last - 4 }));
        }
        if round == 8 {
            // One from the leader, ahead of the own log.
            last += 20;
            all.push(snapshot(term, last, 12_000));
            all.push(Change::PurgeUpTo(StoredLogId { term, node: 7, index: last }));
        }
    }
    all
}

/// What the store holds after each number of changes.
fn states() -> Vec<Contents> {
    let (first, bytes) = super::first_entry(&site()).expect("encodes");
    let mut now = Contents { entries: BTreeMap::from([(first.index, bytes)]), ..Contents::default() };
    let mut all = vec![now.clone()];
    for change in changes() {
        now.apply(change);
        all.push(now.clone());
    }
    all
}

/// The child's work: a first start, and a restart in the middle.
fn live(path: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let tell = |count: usize| {
        // One system call, and not the captured output of a test.
        let mut out = fs::File::options().write(true).open("/dev/stdout").expect("opens");
        out.write_all(format!("{TOLD}{count}\n").as_bytes()).expect("writes");
    };
    let all = changes();
    let half = all.len() / 2;
    let mut count = 0;
    for part in [&all[..half], &all[half..]] {
        let folder = open(path).expect("opens");
        assert_eq!(folder.amnesia, None);
        tell(count);
        for change in part {
            runtime.block_on(folder.disk.write(change.clone())).expect("writes");
            count += 1;
            tell(count);
        }
        drop(folder);
        let file = fs::File::open(path.join("store/db")).expect("opens");
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("locks");
    }
}

type Image = BTreeMap<String, Vec<u8>>;

/// What a power cut may leave: everything it was told to keep, and any part of the rest.
fn honest(model: &Model, dice: &mut Dice, kind: usize) -> Image {
    let mut up_to = |n: usize| usize::try_from(dice.throw() % (n as u64 + 1)).expect("small");
    let names = match kind {
        0 => 0,
        1 => model.names(),
        _ => up_to(model.names()),
    };
    model.cut(names, |inode: &Inode| {
        let mut content = inode.durable.clone();
        let mut pieces: Vec<&Piece> = inode.pending.iter().map(|(_, piece)| piece).collect();
        match kind {
            0 => pieces.clear(),
            1 => {}
            // The rest came too late.
            2 => pieces.truncate(up_to(pieces.len())),
            // One is missing.
            3 if !pieces.is_empty() => {
                pieces.remove(up_to(pieces.len() - 1));
            }
            // Any, in any order.
            _ => {
                pieces.retain(|_| up_to(1) == 1);
                if kind == 5 {
                    for n in (1..pieces.len()).rev() {
                        pieces.swap(n, up_to(n));
                    }
                }
            }
        }
        for piece in pieces {
            match piece {
                Piece::Write { at, data } if kind >= 4 => {
                    // Torn: each sector has arrived or not.
                    let mut from = 0;
                    while from < data.len() {
                        let to = data.len().min((at + from) / SECTOR * SECTOR + SECTOR - at);
                        if up_to(3) > 0 {
                            Piece::Write { at: at + from, data: data[from..to].to_vec() }.apply(&mut content);
                        }
                        from = to;
                    }
                }
                piece => piece.apply(&mut content),
            }
        }
        content
    })
}

const HONEST: usize = 6;
const LIES: [&str; 6] = ["bit", "bits", "short", "zeroed", "repeated", "stale"];

/// What a disk may show that does not do what it was told. One lie at a time.
fn lie(ops: &[Op], at: usize, image: &mut Image, dice: &mut Dice, kind: usize) {
    let mut below = |n: usize| usize::try_from(dice.throw() % n.max(1) as u64).expect("small");
    let files: Vec<String> = image.iter().filter(|(_, c)| !c.is_empty()).map(|(f, _)| f.clone()).collect();
    // The large file is the one that matters most.
    let pick = if below(2) == 0 { files.iter().position(|f| f == "store/db") } else { None };
    let Some(file) = files.get(pick.unwrap_or_else(|| below(files.len()))) else { return };
    let content = image.get_mut(file).expect("is one of them");
    match LIES[kind] {
        "bit" | "bits" => {
            for _ in 0..if kind == 0 { 1 } else { 8 } {
                let byte = below(content.len());
                content[byte] ^= 1 << below(8);
            }
        }
        "short" => content.truncate(below(content.len())),
        "zeroed" => {
            let from = below(content.len()) / SECTOR * SECTOR;
            let to = content.len().min(from + SECTOR * (1 + below(16)));
            content[from..to].fill(0);
        }
        "repeated" => {
            let writes: Vec<&Op> = ops[..at].iter().filter(|op| matches!(op, Op::Write { .. })).collect();
            if let Some(Op::Write { file, at, data }) = writes.get(below(writes.len()))
                && let Some(content) = image.get_mut(file)
            {
                Piece::Write { at: *at, data: data.clone() }.apply(content);
            }
        }
        _ => {
            let mut model = Model::default();
            ops[..below(at)].iter().for_each(|op| model.step(op));
            let file = file.clone();
            match model.cut(model.names(), whole).remove(&file) {
                Some(old) => drop(image.insert(file, old)),
                None => drop(image.remove(&file)),
            }
        }
    }
}

fn whole(inode: &Inode) -> Vec<u8> {
    let mut content = inode.durable.clone();
    inode.pending.iter().for_each(|(_, piece)| piece.apply(&mut content));
    content
}

fn last(contents: &Contents) -> Option<StoredLogId> {
    let snapshot = contents.snapshot.as_ref().and_then(|s| super::decode_snapshot(s).ok()?.0.last_log_id);
    let entry = contents.entries.values().next_back().and_then(|e| super::decode(e).ok());
    [snapshot, entry.map(|e| e.log_id)].into_iter().flatten().map(|id| super::store_log_id(&id)).max()
}

fn same(a: &Contents, b: &Contents) -> bool {
    (a.vote, a.purged, &a.snapshot, &a.entries) == (b.vote, b.purged, &b.snapshot, &b.entries)
}

/// Whether `b` is `a` after the news that its vote has won, which alone is not worth a sync.
fn only_won(a: &Contents, b: &Contents) -> bool {
    let won = a.vote.map(|vote| StoredVote { committed: true, ..vote });
    same(&Contents { vote: won, ..a.clone() }, b)
}

#[derive(Debug, Default)]
struct Tally {
    kept: AtomicUsize,
    quarantined: AtomicUsize,
    /// After honest power cuts.
    lost: AtomicUsize,
}

/// Opens an image and judges what comes of it.
fn judge(
    image: &Image,
    told: usize,
    lied: bool,
    states: &[Contents],
    place: &Path,
    tally: &Tally,
) -> Result<(), String> {
    fs::create_dir_all(place.join("store")).expect("makes");
    for (file, content) in image {
        let path = place.join(file);
        fs::create_dir_all(path.parent().expect("has one")).expect("makes");
        fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    if !image.keys().any(|file| file.starts_with("store/")) {
        fs::remove_dir(place.join("store")).expect("removes");
    }
    let opened = std::panic::catch_unwind(|| open(place));
    let verdict = match opened {
        Err(_) => Err("it panicked".to_owned()),
        Ok(Err(e)) => Err(format!("neither opened nor quarantined: {e}")),
        Ok(Ok(folder)) => match &folder.amnesia {
            Some(amnesia) => {
                tally.quarantined.fetch_add(1, Ordering::Relaxed);
                if lied {
                    Ok(())
                } else {
                    tally.lost.fetch_add(1, Ordering::Relaxed);
                    Err(format!("lost by a mere power cut: {}", amnesia.found))
                }
            }
            None => {
                tally.kept.fetch_add(1, Ordering::Relaxed);
                let found = folder.disk.contents().expect("reads");
                let now = &states[told];
                let ballot = |c: &Contents| c.vote.map(|vote| (vote.term, vote.node));
                let known = states.iter().take(told + 2).enumerate().rev().find(|(_, s)| same(s, &found));
                match known {
                    Some((n, _)) if n >= told => Ok(()),
                    Some((n, s)) if n + 1 == told && only_won(s, now) => Ok(()),
                    // An older snapshot, or entries that were to be removed: what was promised is all there.
                    Some((_, s)) if lied && ballot(s) >= ballot(now) && last(s) >= last(now) => Ok(()),
                    Some((n, _)) => Err(format!("it is back at {n} without a word")),
                    None if told == 0 && found.vote.is_none() => Ok(()),
                    None => Err("it holds what it never held".to_owned()),
                }
            }
        },
    };
    let _ = fs::remove_dir_all(place);
    verdict
}

fn setting(name: &str, usual: u64) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "how much a test shall do")]
    std::env::var(name).ok().map_or(usual, |n| n.parse().expect("a number"))
}

#[test]
fn no_crash_image_brings_back_an_older_store() {
    if let Some(path) = std::env::var_os(FOLDER) {
        return live(Path::new(&path));
    }
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.expect("a folder");
    let data = fs::canonicalize(base.path()).expect("exists").join("data");
    fs::create_dir(&data).expect("makes");
    let ops = tape::record(NAME, FOLDER, &data);
    let states = states();
    let told = ops.iter().filter(|op| matches!(op, Op::Told(_))).count();
    assert_eq!(told, states.len() + 1, "every acknowledgement was seen, and the restart");
    let (count, seed) = (setting(COUNT, 4_000), setting(SEED, 1));
    let usual = Arc::new(std::panic::take_hook());
    let loud = usual.clone();
    std::panic::set_hook(Box::new(move |info| {
        // sled says so when it cannot read a store. Everybody else must not panic.
        if std::thread::current().name() != Some("store-check") {
            loud(info);
        }
    }));
    let (tally, faults, next) = (Tally::default(), Mutex::new(Vec::new()), AtomicUsize::new(0));
    let seen = Mutex::new(BTreeSet::new());
    let (kinds, boundaries) = (HONEST + LIES.len(), ops.len() + 1);
    let work = |worker: usize| {
        let (mut model, mut done, mut at_round) = (Model::default(), 0, 0);
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n as u64 >= count {
                return;
            }
            // All boundaries in order, each kind in turn, so that the model only ever goes forward within a round.
            let total = usize::try_from(count).expect("fits");
            let (round, spread) = (n * kinds / total.max(kinds), total.div_ceil(kinds));
            let at = ((n % spread) * boundaries / spread).min(ops.len());
            if at < done || round != at_round {
                (model, done, at_round) = (Model::default(), 0, round);
            }
            ops[done..at].iter().for_each(|op| model.step(op));
            done = at;
            let kind = (n / spread).min(kinds - 1);
            let mut dice = Dice::new(seed.wrapping_mul(1 << 32).wrapping_add(n as u64));
            let lied = kind >= HONEST;
            let mut image = honest(&model, &mut dice, if lied { 1 } else { kind });
            if lied {
                lie(&ops, at, &mut image, &mut dice, kind - HONEST);
            }
            let fingerprint = image.iter().fold(model.told as u64, |sum, (name, content)| {
                sum.rotate_left(7) ^ crate::id::fnv1a(name.as_bytes()) ^ crate::id::fnv1a(content)
            });
            if !seen.lock().expect("no panic").insert(fingerprint) {
                continue;
            }
            let place = base.path().join(format!("{worker}-{n}"));
            if let Err(what) = judge(&image, model.told, lied, &states, &place, &tally) {
                let kind = if lied { LIES[kind - HONEST].to_owned() } else { format!("power cut {kind}") };
                let mut faults = faults.lock().expect("no panic");
                faults.push(format!("image {n} ({kind}, after operation {at} of {}): {what}", ops.len()));
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let work = &work;
            scope.spawn(move || work(worker));
        }
    });
    drop(std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| usual(info)));
    // sled's threads end a moment after their handles.
    std::thread::park_timeout(Duration::from_millis(100));
    let faults = faults.into_inner().expect("no panic");
    let opened = seen.into_inner().expect("no panic").len();
    let shown: Vec<&String> = faults.iter().take(40).collect();
    println!(
        "{} operations, {count} images with seed {seed}, {opened} of them different: {tally:?}",
        ops.len()
    );
    assert!(faults.is_empty(), "{} of {opened} images:\n{shown:#?}", faults.len());
}
