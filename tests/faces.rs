//! The HTTP and gRPC faces over real loopback sockets, with a small node of our own behind the door.
//!
//! What is shown here: an answer is given only while it is vouched for, streams speak before what they said lapses,
//! and clients that are rude, mute or greedy cost nobody else anything. Time is paused where it matters: the clock
//! behind the door runs on tokio's, so waiting takes no time.

mod attack;
mod bundle;
mod clients;
mod grpc;
mod http;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use quorate::{
    clock::{Clock, Moment},
    epoch::Epoch,
    hub::BoxFuture,
    id::{DeviceId, SiteId},
    reconcile::commands::{Corridor, Fulfilled, Order, Refusal, Wish},
    status::{
        door::{Answer, Door, Permit},
        events::Events,
        report::{Change, Decision, Owner, Report, Role},
    },
};
use tokio::{sync::watch, time::Instant};

/// A boot clock that runs on tokio's time, and so stands still where tokio's is paused.
#[derive(Debug)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    fn now(&self) -> Moment {
        // Not zero: a moment before boot could not be told from boot.
        Moment::from_nanos(1_000_000_000) + self.0.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        1_793_607_330_123
    }
}

/// A node that says what the test tells it to say.
struct Puppet {
    me: DeviceId,
    site: SiteId,
    clock: Arc<TokioClock>,
    report: Mutex<Report>,
    answers: watch::Sender<Answer>,
    permits: watch::Sender<Permit>,
    events: Events,
    asked: Mutex<Vec<Wish>>,
}

impl Puppet {
    fn new() -> Arc<Puppet> {
        let unknown = Answer::Unknown { reason: "no majority has answered yet".into() };
        let idle = Permit {
            active: false,
            epoch: Epoch::ZERO,
            until: Moment::default(),
            reason: "another device owns".into(),
        };
        Arc::new(Puppet {
            me: device("edge-1"),
            site: SiteId::new("plant-7").expect("a name"),
            clock: Arc::new(TokioClock(Instant::now())),
            report: Mutex::new(report()),
            answers: watch::Sender::new(unknown),
            permits: watch::Sender::new(idle),
            events: Events::default(),
            asked: Mutex::default(),
        })
    }

    /// From now on `owner` owns, vouched for `valid`.
    fn vouch(&self, owner: Option<&str>, epoch: u64, valid: Duration) {
        self.answers.send_replace(Answer::Known {
            owner: owner.map(device),
            epoch: Epoch::new(epoch).expect("small"),
            until: self.clock.now() + valid,
            reason: "edge-1 claimed".into(),
        });
    }

    fn permit(&self, epoch: u64, valid: Duration) {
        self.permits.send_replace(Permit {
            active: true,
            epoch: Epoch::new(epoch).expect("small"),
            until: self.clock.now() + valid,
            reason: "owner with a lease".into(),
        });
    }
}

/// Waits for what must come soon; a failure says so instead of hanging.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("comes soon")
}

/// Lets `time` pass at once, after what is under way has settled. Real sockets and paused time do not mix well, so time
/// runs again afterwards.
async fn skip(time: Duration) {
    for _ in 0..500 {
        tokio::task::yield_now().await;
    }
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).expect("a name")
}

fn owner_by_default() -> DeviceId {
    device("edge-2")
}

fn report() -> Report {
    Report {
        site: "plant-7".into(),
        device: "edge-1".into(),
        version: "0.1.0".into(),
        role: Role::Leader,
        epoch: 17,
        quorum: true,
        owner: Owner { known: true, device: Some("edge-1".into()), epoch: 17, ..Owner::default() },
        last_decision: Some(Decision { reason: "keeps the workload running".into(), unix_ms: 5 }),
        history: vec![Change {
            epoch: 17,
            device: "edge-1".into(),
            cause: "takeover".into(),
            ..Change::default()
        }],
        ..Report::default()
    }
}

impl Door for Puppet {
    fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn events(&self) -> Events {
        self.events.clone()
    }

    fn me(&self) -> &DeviceId {
        &self.me
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    fn answers(&self) -> watch::Receiver<Answer> {
        self.answers.subscribe()
    }

    fn permits(&self) -> watch::Receiver<Permit> {
        self.permits.subscribe()
    }
}

impl Corridor for Puppet {
    fn site(&self) -> &SiteId {
        &self.site
    }

    fn epoch(&self) -> Epoch {
        unreachable!("no face asks")
    }

    fn status(&self) -> serde_json::Value {
        unreachable!("faces read the report")
    }

    fn why(&self) -> serde_json::Value {
        unreachable!("faces read the report")
    }

    fn executed(&self, _: u64) -> Option<Epoch> {
        unreachable!("no face asks")
    }

    fn order(&self, wish: Wish) -> BoxFuture<'_, Result<Fulfilled, Refusal>> {
        let order = wish.order.clone();
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(wish);
        Box::pin(async move {
            let (owner, device) = match &order {
                Order::Transfer(to) => (Some(to.clone().unwrap_or_else(owner_by_default)), to.as_ref()),
                Order::Drain(device) | Order::Undrain(device) => (None, Some(device)),
                Order::Prefer(device) => (None, device.as_ref()),
                _ => (None, None),
            };
            match device.map(DeviceId::as_str) {
                None | Some("edge-2") => {
                    Ok(Fulfilled { repeated: false, epoch: Epoch::new(18).expect("small"), owner })
                }
                // It owns by what this node says of itself.
                Some("edge-1") => Ok(Fulfilled {
                    repeated: true,
                    epoch: Epoch::new(17).expect("small"),
                    owner: device.cloned(),
                }),
                Some("edge-3") => Err(Refusal::Unfit("edge-3 is a witness and never owns".into())),
                Some(other) => Err(Refusal::NoSuchDevice(format!("{other} is not a member of plant-7"))),
            }
        })
    }
}
