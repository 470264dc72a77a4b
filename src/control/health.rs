//! The standard `grpc.health.v1` service, answered from the door at the moment of asking.
//!
//! The service `""` (the sidecar itself) and the names of the real services serve as long as the process does;
//! `quorate.owner` serves only while this device owns and can vouch for it. tonic-health's own reporter is not used
//! because it keeps the last state it was told, and an ownership lapses without anybody telling.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, future, stream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

use super::service::Service;
use crate::{
    id::DeviceId,
    status::{door::Answer, watch::tell},
};

/// Serves only on the owner.
const OWNER: &str = "quorate.owner";
/// Serve while the process does.
const ALWAYS: &[&str] = &["", "quorate.v1.Control", "quorate.v1.Ownership"];

fn owns(answer: &Answer, me: &DeviceId) -> ServingStatus {
    match answer {
        Answer::Known { owner: Some(owner), .. } if owner == me => ServingStatus::Serving,
        _ => ServingStatus::NotServing,
    }
}

fn reply(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match request.into_inner().service.as_str() {
            OWNER => {
                let now = self.door().clock().now();
                let answer = self.door().answers().borrow().at(now);
                Ok(Response::new(reply(owns(&answer, self.door().me()))))
            }
            name if ALWAYS.contains(&name) => Ok(Response::new(reply(ServingStatus::Serving))),
            _ => Err(Status::not_found(
                "services are: quorate.owner, and the empty name for the sidecar itself",
            )),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// As the protocol demands, a name that is not known is a state and not an error.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let slot = self.slot()?;
        let name = request.into_inner().service;
        if name != OWNER {
            let known = ALWAYS.contains(&name.as_str());
            let status = if known { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
            let once = stream::once(future::ready((reply(status), slot)));
            let open = once.chain(stream::pending()).take_until(self.stop().cancelled_owned());
            // The slot is given back when the client leaves, not after the first word.
            let held = open.scan(None, |held, (reply, slot)| {
                *held = Some(slot);
                future::ready(Some(Ok(reply)))
            });
            return Ok(Response::new(held.boxed()));
        }
        let me = self.door().me().clone();
        let told = tell(self.door().answers(), self.door().clock(), slot, self.stop());
        let changes = told
            .map(move |(answer, _)| owns(&answer, &me))
            .scan(None, |last, status| {
                let news = last.replace(status) != Some(status);
                future::ready(Some(news.then_some(status)))
            })
            .filter_map(|news| future::ready(news.map(|status| Ok(reply(status)))));
        Ok(Response::new(changes.boxed()))
    }
}
