//! The services `Control` and `Ownership` of `proto/control.proto`, over the door.
//!
//! It translates and limits, and decides nothing: texts from outside are checked for length and control characters,
//! streams are counted, and whether a handover may happen is the node's answer.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::proto::{
    self, DeviceRequest, GetEventsReply, GetEventsRequest, GetLeaderRequest, GetStatusRequest, Leader,
    OrderReply, OrderRequest, OwnershipState, TransferReply, TransferRequest, WatchLeaderRequest,
    WatchOwnershipRequest, WhyReply, WhyRequest, control_server::Control, ownership_server::Ownership,
};
use crate::{
    clock::{Clock, Moment, boottime_within, millis},
    id::DeviceId,
    reconcile::commands::{ACTOR_MAX, Fulfilled, Order, PAUSE_MS, REASON_MAX, Refusal, Wish},
    status::{
        door::{Answer, Handle, Permit},
        events::Event,
        report::Report,
        watch::tell,
    },
};

/// Open streams of all clients together.
const STREAMS_MAX: usize = 64;
/// The longest that an order is waited for; what the node began, it finishes without us.
const ORDER_TIME: Duration = Duration::from_secs(75);

/// Both services. Cheap to clone; clones share the limit on streams.
#[derive(Clone)]
pub struct Service {
    door: Handle,
    streams: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Service {
    /// Serves what `door` shows. Streams end when `stop` is cancelled.
    pub fn new(door: Handle, stop: CancellationToken) -> Service {
        Service { door, streams: Arc::new(Semaphore::new(STREAMS_MAX)), stop }
    }

    pub(super) fn slot(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{STREAMS_MAX} streams are open already; close some and try again"
            ))
        })
    }

    /// Passes a person's or program's order on to the node.
    async fn order(&self, order: Order, reason: String, actor: String) -> Result<Fulfilled, Status> {
        plain("reason", &reason, REASON_MAX)?;
        plain("actor", &actor, ACTOR_MAX)?;
        let actor = if actor.is_empty() { "unknown".to_owned() } else { actor };
        tracing::info!(actor, why = reason, "ordered: {order}");
        let wish = Wish { id: None, order, reason, actor, base: None, expires_unix_ms: 0 };
        match tokio::time::timeout(ORDER_TIME, self.door.order(wish)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(refusal)) => Err(match &refusal {
                Refusal::NoSuchDevice(text) => Status::not_found(text.clone()),
                Refusal::Unfit(text) => Status::failed_precondition(text.clone()),
                Refusal::Stale(text) => Status::aborted(text.clone()),
                Refusal::NotNow(text) => Status::unavailable(text.clone()),
                Refusal::Unconfirmed(text) => Status::deadline_exceeded(text.clone()),
            }),
            Err(_) => {
                Err(Status::deadline_exceeded("it was begun and is not confirmed yet; ask `quorate status`"))
            }
        }
    }

    /// What became of an order that is not about who owns next.
    async fn lasting(
        &self,
        order: Order,
        reason: String,
        actor: String,
    ) -> Result<Response<OrderReply>, Status> {
        let done = self.order(order, reason, actor).await?;
        let owner = done.owner.map(|device| device.to_string()).unwrap_or_default();
        Ok(Response::new(OrderReply { epoch: done.epoch.get(), owner, site: self.door.site().to_string() }))
    }

    pub(super) fn door(&self) -> &Handle {
        &self.door
    }

    pub(super) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }
}

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn leader(answer: &Answer, now: Moment) -> Leader {
    match answer {
        Answer::Known { owner, epoch, until, reason } => Leader {
            known: true,
            device: owner.as_ref().map(|d| d.to_string()).unwrap_or_default(),
            epoch: epoch.get(),
            valid_for_ms: millis(until.since(now)),
            reason: reason.clone(),
        },
        Answer::Unknown { reason } => Leader { reason: reason.clone(), ..Leader::default() },
    }
}

fn state(permit: &Permit, clock: &dyn Clock) -> OwnershipState {
    let now = clock.now();
    OwnershipState {
        active: permit.active,
        epoch: permit.epoch.get(),
        valid_for_ms: if permit.active { millis(permit.until.since(now)) } else { 0 },
        reason: permit.reason.clone(),
        until_boottime_ns: if permit.active { boottime_within(permit.until, clock).as_nanos() } else { 0 },
    }
}

#[tonic::async_trait]
impl Control for Service {
    async fn get_leader(&self, _: Request<GetLeaderRequest>) -> Result<Response<Leader>, Status> {
        let now = self.door.clock().now();
        let answer = self.door.answers().borrow().at(now);
        match &answer {
            Answer::Unknown { reason } => Err(Status::unavailable(reason.clone())),
            Answer::Known { .. } => Ok(Response::new(leader(&answer, now))),
        }
    }

    type WatchLeaderStream = Streaming<Leader>;

    async fn watch_leader(
        &self,
        _: Request<WatchLeaderRequest>,
    ) -> Result<Response<Self::WatchLeaderStream>, Status> {
        let told = tell(self.door.answers(), self.door.clock(), self.slot()?, self.stop());
        Ok(Response::new(told.map(|(answer, now)| Ok(leader(&answer, now))).boxed()))
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<proto::Status>, Status> {
        let report = self.door.report();
        let json = serde_json::to_string(&report).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(status(report, json)))
    }

    async fn why(&self, _: Request<WhyRequest>) -> Result<Response<WhyReply>, Status> {
        let report = self.door.report();
        let decision = report.last_decision.unwrap_or_default();
        let changes = report.history.into_iter().map(|c| proto::OwnershipChange {
            epoch: c.epoch,
            device: c.device,
            cause: c.cause,
            actor: c.actor,
            reason: c.reason,
            since_unix_ms: c.since_unix_ms,
            until_unix_ms: c.until_unix_ms.unwrap_or(0),
        });
        Ok(Response::new(WhyReply {
            decision: decision.reason,
            decided_unix_ms: decision.unix_ms,
            changes: changes.collect(),
        }))
    }

    async fn get_events(
        &self,
        request: Request<GetEventsRequest>,
    ) -> Result<Response<GetEventsReply>, Status> {
        let last = match request.into_inner().last {
            0 => usize::MAX,
            last => usize::try_from(last).unwrap_or(usize::MAX),
        };
        let events = self.door.events().last(last).into_iter().map(event).collect();
        Ok(Response::new(GetEventsReply { events }))
    }

    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<TransferReply>, Status> {
        let TransferRequest { to, reason, actor } = request.into_inner();
        let to = if to.is_empty() { None } else { Some(device(&to)?) };
        let done = self.order(Order::Transfer(to), reason, actor).await?;
        let device = done.owner.map(|device| device.to_string()).unwrap_or_default();
        let (site, already) = (self.door.site().to_string(), done.repeated);
        Ok(Response::new(TransferReply { device, epoch: done.epoch.get(), site, already }))
    }

    async fn pause(&self, request: Request<OrderRequest>) -> Result<Response<OrderReply>, Status> {
        let OrderRequest { reason, actor, for_ms } = request.into_inner();
        if for_ms != 0 && !PAUSE_MS.contains(&for_ms) {
            let (least, most) = (PAUSE_MS.start(), PAUSE_MS.end());
            return Err(Status::invalid_argument(format!("for_ms is neither 0 nor {least} to {most}")));
        }
        let lasts = (for_ms != 0).then(|| Duration::from_millis(for_ms));
        self.lasting(Order::Pause(lasts), reason, actor).await
    }

    async fn resume(&self, request: Request<OrderRequest>) -> Result<Response<OrderReply>, Status> {
        let OrderRequest { reason, actor, for_ms } = request.into_inner();
        if for_ms != 0 {
            return Err(Status::invalid_argument("for_ms is for Pause alone"));
        }
        self.lasting(Order::Resume, reason, actor).await
    }

    async fn drain(&self, request: Request<DeviceRequest>) -> Result<Response<OrderReply>, Status> {
        let DeviceRequest { device: name, reason, actor } = request.into_inner();
        self.lasting(Order::Drain(device(&name)?), reason, actor).await
    }

    async fn undrain(&self, request: Request<DeviceRequest>) -> Result<Response<OrderReply>, Status> {
        let DeviceRequest { device: name, reason, actor } = request.into_inner();
        self.lasting(Order::Undrain(device(&name)?), reason, actor).await
    }

    async fn prefer(&self, request: Request<DeviceRequest>) -> Result<Response<OrderReply>, Status> {
        let DeviceRequest { device: name, reason, actor } = request.into_inner();
        let preferred = if name.is_empty() { None } else { Some(device(&name)?) };
        self.lasting(Order::Prefer(preferred), reason, actor).await
    }
}

fn event(event: Event) -> proto::Event {
    let sentence = event.to_string();
    let Event { seq, unix_ms, kind, name, over, device, epoch, text, order: _ } = event;
    proto::Event { seq, unix_ms, kind: kind.name().into(), name, over, device, epoch, text, sentence }
}

fn device(name: &str) -> Result<DeviceId, Status> {
    DeviceId::new(name).map_err(|e| Status::invalid_argument(format!("the device id {e}")))
}

#[tonic::async_trait]
impl Ownership for Service {
    type WatchOwnershipStream = Streaming<OwnershipState>;

    async fn watch_ownership(
        &self,
        _: Request<WatchOwnershipRequest>,
    ) -> Result<Response<Self::WatchOwnershipStream>, Status> {
        let told = tell(self.door.permits(), self.door.clock(), self.slot()?, self.stop());
        let clock = self.door.clock();
        Ok(Response::new(told.map(move |(permit, _)| Ok(state(&permit, &*clock))).boxed()))
    }
}

/// Free text goes into the record, the log and every face, so it is short and harmless.
fn plain(name: &str, text: &str, max_bytes: usize) -> Result<(), Status> {
    if text.len() > max_bytes {
        return Err(Status::invalid_argument(format!("{name} is longer than {max_bytes} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(Status::invalid_argument(format!(
            "{name} holds control characters; write one plain line"
        )));
    }
    Ok(())
}

fn status(report: Report, json: String) -> proto::Status {
    let owner = report.owner;
    proto::Status {
        leader: Some(Leader {
            known: owner.known,
            device: owner.device.unwrap_or_default(),
            epoch: owner.epoch,
            valid_for_ms: owner.valid_for_ms,
            reason: owner.reason,
        }),
        site: report.site,
        device: report.device,
        version: report.version,
        json,
        members: report
            .members
            .into_iter()
            .map(|m| proto::Member {
                device: m.device,
                role: m.role,
                address: m.address,
                reachable: m.reachable,
                last_heard_ms: m.last_heard_ms,
                build: m.build,
                workload: m.workload.unwrap_or_default(),
            })
            .collect(),
        devices_may_fail: report.devices_may_fail,
        hub_in_sync: report.hub.in_sync,
        conditions: report
            .conditions
            .into_iter()
            .map(|c| proto::Condition {
                name: c.name,
                severity: c.severity,
                detail: c.detail,
                advice: c.advice,
                device: c.device,
            })
            .collect(),
    }
}
