use std::sync::Arc;

use super::*;
use crate::status::events::Kind;

fn event(seq: u64) -> Event {
    let text = format!("edge-{seq} says \"ü\"\n");
    Event {
        seq,
        unix_ms: 1_793_607_330_000 + seq,
        kind: Kind::Decision,
        name: "owning".into(),
        text,
        ..Event::default()
    }
}

fn events(seqs: std::ops::RangeInclusive<u64>) -> Vec<Event> {
    seqs.map(event).collect()
}

fn kept(folder: &Path) -> Vec<u64> {
    let (_, events) = Ring::open(folder);
    events.iter().for_each(|e| assert_eq!(*e, event(e.seq), "what is read is what was written"));
    events.iter().map(|e| e.seq).collect()
}

fn append(folder: &Path, seqs: std::ops::RangeInclusive<u64>) {
    Ring::open(folder).0.append(&events(seqs)).expect("writes");
}

#[test]
fn what_was_written_is_read_in_order() {
    let folder = tempfile::tempdir().expect("folder");
    assert!(kept(folder.path()).is_empty());
    assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 0, "to look writes nothing");
    let (mut ring, _) = Ring::open(folder.path());
    ring.append(&events(1..=3)).expect("writes");
    ring.append(&events(4..=4)).expect("writes");
    append(folder.path(), 5..=6);
    assert_eq!(kept(folder.path()), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_write_that_is_torn_at_any_byte_costs_what_it_tore() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join(NEWER);
    append(folder.path(), 1..=2);
    let before = fs::read(&file).expect("reads");
    append(folder.path(), 3..=4);
    let whole = fs::read(&file).expect("reads");
    let third = line(&event(3)).expect("encodes").len();
    for end in before.len()..=whole.len() {
        fs::write(&file, &whole[..end]).expect("writes");
        let complete = match end - before.len() {
            // Without its line break an event is complete all the same.
            n if n + 1 >= whole.len() - before.len() => 4,
            n if n + 1 >= third => 3,
            _ => 2,
        };
        assert_eq!(kept(folder.path()), (1..=complete).collect::<Vec<_>>(), "torn at byte {end}");
        append(folder.path(), 5..=5);
        let expected: Vec<u64> = (1..=complete).chain([5]).collect();
        assert_eq!(kept(folder.path()), expected, "torn at byte {end}, and then written to");
    }
}

#[test]
fn a_byte_that_changed_costs_its_line_alone() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join(NEWER);
    append(folder.path(), 1..=5);
    let whole = fs::read(&file).expect("reads");
    for at in 0..whole.len() {
        for change in [0x01, 0x20, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            fs::write(&file, &bytes).expect("writes");
            // A line break that is lost takes the line behind it along. The checksum itself may change to capitals.
            let lost = 5 - kept(folder.path()).len();
            assert!(lost <= 2, "{lost} events are lost by one byte at {at}");
        }
    }
}

#[test]
fn two_files_hold_the_last_thousand_and_never_grow() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut ring, _) = Ring::open(folder.path());
    for n in 0..50 {
        ring.append(&events(n * 100 + 1..=n * 100 + 100)).expect("writes");
        let kept = kept(folder.path());
        assert_eq!(kept.last(), Some(&(n * 100 + 100)));
        assert_eq!(kept.len(), usize::min(n as usize * 100 + 100, EVENTS_MAX));
        // A restart goes on where the last life ended.
        ring = Ring::open(folder.path()).0;
    }
    let long = Event { text: "x".repeat(4096), ..event(9) };
    for _ in 0..2_000 {
        ring.append(std::slice::from_ref(&long)).expect("writes");
    }
    let names: Vec<_> = fs::read_dir(folder.path()).expect("lists").flatten().collect();
    assert_eq!(names.len(), 2);
    assert!(names.iter().all(|n| n.metadata().expect("is there").len() <= BYTES_MAX));
}

#[test]
fn a_crash_in_the_middle_of_changing_files_loses_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    append(folder.path(), 1..=900);
    // After the rename, before the new file is there.
    fs::rename(folder.path().join(NEWER), folder.path().join(OLDER)).expect("renames");
    assert_eq!(kept(folder.path()).len(), 900);
    append(folder.path(), 901..=902);
    assert_eq!(kept(folder.path()).len(), 902);
}

#[test]
fn what_else_lies_in_its_place_is_no_event() {
    let folder = tempfile::tempdir().expect("folder");
    fs::write(folder.path().join(OLDER), vec![0xff; 4 << 20]).expect("writes");
    fs::write(folder.path().join(NEWER), "00000000 {}\nffffffff\n\n12345678 \nnot hex!! {}\n")
        .expect("writes");
    assert!(kept(folder.path()).is_empty());
    append(folder.path(), 1..=1);
    assert_eq!(kept(folder.path()), [1]);
}

#[test]
fn a_disk_that_refuses_costs_the_files_alone() {
    let folder = tempfile::tempdir().expect("folder");
    let place = folder.path().join(NEWER);
    fs::create_dir(&place).expect("a folder where the file belongs");
    let (mut ring, _) = Ring::open(folder.path());
    assert!(ring.append(&events(1..=1)).is_err());
    assert!(ring.append(&events(2..=2)).is_err());
    fs::remove_dir(&place).expect("removes");
    ring.append(&events(3..=3)).expect("writes again");
    assert_eq!(kept(folder.path()), [3]);
}

#[tokio::test(start_paused = true)]
async fn what_is_added_is_written_and_leaving_writes_the_rest() {
    let folder = tempfile::tempdir().expect("folder");
    let path = Arc::new(folder.path().to_owned());
    let on_disk = || Ring::open(&path).1.into_iter().map(|e| e.seq).collect::<Vec<_>>();
    let add = |events: &Events| {
        events.add(Event { name: "owning".into(), kind: Kind::Decision, ..Event::default() })
    };
    let (ring, kept) = Ring::open(&path);
    let events = Events::after(kept);
    let stop = CancellationToken::new();
    let keep = ring.keep(events.clone(), stop.clone());
    let story = async {
        add(&events);
        add(&events);
        while on_disk() != [1, 2] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        add(&events);
        stop.cancel();
    };
    tokio::join!(keep, story);
    assert_eq!(on_disk(), [1, 2, 3]);
    let later = Events::after(Ring::open(&path).1);
    add(&later);
    assert_eq!(later.newest(), 4);
}
