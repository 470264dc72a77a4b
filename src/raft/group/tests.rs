//! Three members in one process, of which one has a slow disk.

use std::{
    pin::Pin,
    sync::{Mutex, PoisonError},
};

use super::*;
use crate::{
    epoch::Epoch,
    id::{Incarnation, SiteId, StoreId},
    ownership::{command::Transfer, view::Standing},
    raft::{
        Campaign, Courtesy,
        log::{Contents, first_entry, memory::MemoryDisk},
        peer::transport::{Connection, Dialer},
    },
    site::{Member, Site},
    timing::Settings,
};

const MS: Duration = Duration::from_millis(1);

#[derive(Debug)]
struct PausedClock(tokio::time::Instant);

impl Clock for PausedClock {
    fn now(&self) -> Moment {
        Moment::default() + self.0.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        0
    }
}

type Arrivals = mpsc::UnboundedSender<io::Result<Connection>>;

/// Pipes in memory, by address.
#[derive(Clone, Default)]
struct Lan(Arc<Mutex<BTreeMap<String, Arrivals>>>);

impl Dialer for Lan {
    fn dial(&self, address: String) -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>> {
        let (near, far) = tokio::io::duplex(64 << 10);
        let doors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let door = doors.get(&address).cloned();
        Box::pin(async move {
            let door = door.ok_or(io::ErrorKind::ConnectionRefused)?;
            door.send(Ok(Connection::open(far, "somebody"))).map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok(Connection::open(near, address))
        })
    }
}

fn site() -> Site {
    let member = |n: u8| Member {
        device: DeviceId::new(format!("edge-{n}")).expect("a name"),
        address: format!("10.0.0.{n}:7600"),
        role: crate::site::Role::Voter,
    };
    Site {
        id: SiteId::new("plant-7").expect("a name"),
        members: vec![member(1), member(2), member(3)],
        timing: Timing::new(&Settings::default()).expect("consistent"),
    }
}

/// The members of a site that was never up before, with their disks.
async fn members() -> Vec<(Group, MemoryDisk)> {
    let (lan, tasks) = (Lan::default(), TaskTracker::new());
    let clock: Arc<dyn Clock> = Arc::new(PausedClock(tokio::time::Instant::now()));
    let (first, bytes) = first_entry(&site()).expect("encodes");
    let mut members = Vec::new();
    for (n, member) in site().members.into_iter().enumerate() {
        let contents = Contents { entries: [(first.index, bytes.clone())].into(), ..Contents::default() };
        let disk = MemoryDisk::with(contents);
        let store = StoreId { number: n as u64 + 1, later: false };
        let roster = Roster::new(site(), member.device, Incarnation(n as u64 + 1), store, clock.clone());
        let parts = Parts {
            roster: Arc::new(roster),
            disk: Arc::new(disk.clone()),
            boot_refusal: Duration::ZERO,
            dialer: Arc::new(lan.clone()),
            clock: clock.clone(),
            tasks: tasks.clone(),
        };
        let group = Group::start(parts).await.expect("starts");
        let (door, arrivals) = mpsc::unbounded_channel();
        lan.0.lock().unwrap_or_else(PoisonError::into_inner).insert(member.address, door);
        let incoming = Box::pin(tokio_stream::wrappers::UnboundedReceiverStream::new(arrivals));
        let serving = group.clone();
        tasks.spawn(async move {
            serving.serve(incoming, CancellationToken::new()).await.expect("serves");
        });
        members.push((group, disk));
    }
    // Nobody has promised anything, and a start is a promise of no length here.
    tokio::time::sleep(site().timing.refusal() * 2).await;
    members
}

/// The others vote and write while the disk of the one that asks is still at it, and nothing follows from that before it
/// is done: it does not lead, it applies nothing, and nobody is told that anything is committed.
#[tokio::test(start_paused = true)]
async fn a_candidates_slow_disk_is_waited_for_side_by_side() {
    let members = members().await;
    let (slow, others) = members.split_first().expect("three");
    slow.1.delay(Duration::from_secs(1));
    let candidate = slow.0.clone();
    let campaign = TaskTracker::new().spawn(async move { candidate.campaign(0, Courtesy::default()).await });
    let found = |disk: &MemoryDisk| disk.contents().expect("reads");
    let holds = |disk: &MemoryDisk, index: u64| index == 0 || found(disk).entries.contains_key(&index);
    let (mut votes_ahead, mut entry_ahead) = (false, false);
    loop {
        tokio::time::sleep(MS).await;
        let own = found(&slow.1);
        votes_ahead |= own.vote.is_none() && others.iter().any(|(_, disk)| found(disk).vote.is_some());
        entry_ahead |= !holds(&slow.1, 1) && others.iter().any(|(_, disk)| holds(disk, 1));
        if slow.0.role().borrow().standing != Standing::Follower {
            assert!(own.vote.is_some(), "it leads by a vote that it may forget");
        }
        let applied = members.iter().map(|(group, _)| group.record().borrow().index.unwrap_or(0));
        let applied: Vec<u64> = applied.collect();
        for index in &applied {
            assert!(holds(&slow.1, *index), "entry {index} counts without the copy of the leader");
        }
        if applied.iter().all(|index| *index > 0) {
            break;
        }
    }
    assert_eq!(campaign.await.expect("ends"), Campaign::Won);
    assert!(votes_ahead && entry_ahead, "the disks did not work side by side");
}

/// A receipt comes as an append, and whom it names campaigns in the same moment: openraft, which refuses votes for a
/// millisecond after each append, must not cost it an election.
#[tokio::test(start_paused = true)]
async fn a_vote_directly_after_an_append_is_given() {
    let members = members().await;
    let [(old, disk), (new, _), (other, _)] = members.as_slice() else { panic!("three") };
    assert_eq!(old.campaign(0, Courtesy::default()).await, Campaign::Won);
    let (mut first, mut second) = (new.record(), other.record());
    for record in [&mut first, &mut second] {
        record.wait_for(|applied| applied.index == Some(1)).await.expect("it goes on");
    }
    // Its turn ends.
    tokio::time::sleep(site().timing.refusal()).await;
    let transfer = Transfer {
        id: 1,
        to: new.roster().me.clone(),
        base: Epoch::ZERO,
        reason: String::new(),
        actor: String::new(),
        at_unix_ms: 0,
        expires_unix_ms: 0,
    };
    old.propose(Command::Transfer(transfer), Duration::from_secs(1)).await.expect("commits");
    for record in [&mut first, &mut second] {
        record.wait_for(|applied| applied.index == Some(2)).await.expect("it goes on");
    }
    // Who led would vote too, but takes its time: the other one decides.
    disk.delay(Duration::from_secs(1));
    let begun = tokio::time::Instant::now();
    assert_eq!(new.campaign(0, Courtesy::default()).await, Campaign::Won);
    assert!(begun.elapsed() < Duration::from_millis(500), "it took {:?} of simulated time", begun.elapsed());
}
