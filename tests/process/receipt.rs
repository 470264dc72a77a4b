//! The receipt that a fencer shows to the other members when its sidecar is dead: when it gives one, when it does not,
//! and what members make of it.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use quorate::{
    condition::Condition,
    epoch::Epoch,
    seal::{Receipt, Secret},
    workload::{Error, Observed, Workload},
};
use rustix::process::Signal;

use super::{
    site::{Plan, Site},
    stage::{GRACE, SITE_DIGEST, Stage, epoch, eventually, grant, now, observed, send},
};

const LONG: Duration = Duration::from_secs(50);

/// A member that only listens.
struct Member(TcpListener);

impl Member {
    fn new() -> Member {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("is allowed");
        Member(listener)
    }

    fn address(&self) -> String {
        self.0.local_addr().expect("an address").to_string()
    }

    /// What somebody says who calls; all of it.
    async fn hears(&self) -> String {
        let mut caller = None;
        eventually("somebody calls", || {
            caller = self.0.accept().ok();
            caller.is_some()
        })
        .await;
        let (mut stream, _) = caller.expect("just seen");
        stream.set_nonblocking(false).expect("is allowed");
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("reads");
        said
    }

    fn nobody_called(&self) -> bool {
        self.0.accept().is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
    }
}

#[tokio::test]
async fn a_dead_sidecars_fencer_tells_all_members_that_nothing_runs() {
    let mut stage = Stage::new(&["--fork-child", "--escape", "--ignore-term"]);
    let members = [Member::new(), Member::new()];
    stage.members = members.iter().map(Member::address).collect();
    let mut sidecar = stage.sidecar(LONG);
    stage.ticking(2).await;
    sidecar.kill();
    for member in &members {
        let said = member.hears().await;
        assert_eq!(stage.survivors(), [0; 0], "the word of a fencer is true");
        let line = said.strip_suffix('\n').expect("one line");
        let receipt = Receipt::parse(line.as_bytes(), SITE_DIGEST).expect("a receipt of this site");
        assert_eq!((receipt.epoch, receipt.secret.seal()), (epoch(7), stage.seal()));
    }
    eventually("the fencer has ended", || stage.fencers().is_empty()).await;
    assert!(stage.last_until() > now(), "the lease alone would have lasted longer");
}

#[tokio::test]
async fn who_does_not_listen_yet_is_told_later_and_the_next_sidecar_does_not_wait_for_that() {
    let mut stage = Stage::new(&[]);
    let (silent, member) = (Member::new(), Member::new());
    // Nobody will ever answer here.
    let closed = silent.address();
    drop(silent);
    stage.members = vec![closed, member.address()];
    let mut sidecar = stage.sidecar(LONG);
    stage.ticking(1).await;
    sidecar.kill();
    member.hears().await;
    let next = stage.again();
    let workload = next.workload();
    workload.ensure_none_running(now() + LONG).await.expect("the lock is free");
    workload.start(grant(8, now() + LONG)).await.expect("starts");
    workload.stop().await.expect("stops");
}

#[tokio::test]
async fn a_sidecar_that_ends_in_good_order_needs_no_receipt() {
    let mut stage = Stage::new(&[]);
    let member = Member::new();
    stage.members = vec![member.address()];
    let workload = stage.workload();
    workload.seal().expect("random");
    workload.start(grant(7, now() + LONG)).await.expect("starts");
    workload.stop().await.expect("stops");
    stage.leave.cancel();
    stage.tracker.close();
    stage.tracker.wait().await;
    assert!(stage.fencers().is_empty() && member.nobody_called());
}

/// The fencer gives up its sidecar, which is in the best of health: what it was told of is over for good.
#[tokio::test]
async fn an_epoch_whose_fencer_was_lost_is_never_started_again() {
    for signal in [Signal::KILL, Signal::TERM] {
        let stage = Stage::new(&[]);
        let workload = stage.workload();
        workload.seal().expect("random");
        workload.start(grant(7, now() + LONG)).await.expect("starts");
        stage.ticking(1).await;
        assert_eq!(workload.burned(), None);
        send(stage.fencers()[0], signal);
        observed(&workload, "the end is certain", |o| *o == Observed::Stopped).await;
        assert_eq!(workload.burned(), Some(epoch(7)));
        let refused = workload.start(grant(7, now() + LONG)).await;
        assert!(matches!(refused, Err(Error::Burned(e)) if e == epoch(7)), "{refused:?}");
        assert_eq!(stage.survivors(), [0; 0]);
        workload.seal().expect("random");
        workload.start(grant(8, now() + LONG)).await.expect("another claim, another fencer");
        workload.stop().await.expect("stops");
    }
}

/// Waits until everybody knows another owner, and says why it became that.
#[track_caller]
fn succeeded(site: &Site, who: &[usize], epoch: u64) -> (usize, String) {
    let (owner, _) = site.owner_among(who, epoch);
    let report = site.report(owner).expect("answers");
    (owner, report.history.iter().max_by_key(|h| h.epoch).map(|h| h.cause.clone()).unwrap_or_default())
}

#[test]
fn a_killed_sidecar_is_followed_without_waiting_for_its_lease() {
    let (mut site, owner, epoch) = Site::running(Plan::default());
    site.signal(owner, Signal::KILL);
    site.left(owner);
    let others: Vec<usize> = (0..3).filter(|n| *n != owner).collect();
    let (_, cause) = succeeded(&site, &others, epoch);
    assert_eq!(cause, "owner_stopped");
    site.runs_without_overlap();
}

/// Loses the owner's fencer in this way.
#[track_caller]
fn costs_its_owner_the_epoch(signal: Signal) {
    let (site, owner, epoch) = Site::running(Plan::default());
    let lock = site.data(owner).join("fencer.lock");
    let lock = std::fs::canonicalize(lock).expect("exists");
    let fencer = super::site::processes_with(&lock)
        .into_iter()
        .find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|b| *b == 0).nth(1) == Some(b"fencer")
        })
        .expect("it runs");
    super::site::send(fencer, signal);
    let (next, cause) = succeeded(&site, &[0, 1, 2], epoch);
    assert!(site.condition(owner, Condition::FencerLost.name()).contains("lost"));
    assert_eq!((next, cause.as_str()), (owner, "fencer_lost"));
    site.runs_without_overlap();
}

#[test]
fn a_killed_fencer_costs_its_owner_the_epoch() {
    costs_its_owner_the_epoch(Signal::KILL);
}

#[test]
fn a_frozen_fencer_costs_its_owner_the_epoch() {
    costs_its_owner_the_epoch(Signal::STOP);
}

/// Says something to the door for members, and waits until the connection ends.
fn says(address: SocketAddr, words: &[u8]) {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(LONG)).expect("is allowed");
    stream.write_all(words).expect("writes");
    let mut answer = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut answer);
}

#[test]
fn forged_receipts_change_nothing() {
    let (mut site, owner, epoch) = Site::running(Plan::default());
    let digest = super::strangers::digest(&site);
    let forged = |site: u64, epoch: u64, byte: u8| {
        let receipt =
            Receipt { epoch: Epoch::new(epoch).expect("small"), secret: Secret::from_bytes([byte; 32]) };
        format!("{}\n", receipt.line(site)).into_bytes()
    };
    for n in 0..3 {
        for words in [
            forged(digest, epoch, 0),
            forged(digest, epoch, 1),
            forged(digest, epoch + 1, 0),
            forged(digest ^ 1, epoch, 0),
            b"QUORATE-STOPPED\n".to_vec(),
            vec![b'Q'; 5000],
        ] {
            says(site.devices[n].peer, &words);
        }
    }
    let started = now();
    let renewed = |r: &quorate::status::report::Report| r.owner.known && r.owner.epoch == epoch;
    super::site::until("more than a lease to pass", || (now() > started + GRACE * 2).then_some(()));
    for n in 0..3 {
        site.reports(n, "the same owner", renewed);
        assert!(site.runs(n));
    }
    assert_eq!(site.owner(0), (owner, epoch));
    assert_eq!(site.runs_without_overlap().len(), 1);
}
