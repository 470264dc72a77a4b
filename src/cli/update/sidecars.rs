//! The sidecars that are asked during an update: the first that answers, and another once it does not.

use std::time::Duration;

use super::super::{
    asked,
    client::{ANSWER_TIME, Client, Target, Trouble, read_report},
};
use crate::{config::Environment, control::proto::TransferRequest, status::report::Report};

/// A little longer than the sidecar itself waits, so that its reason arrives.
const TRANSFER_TIME: Duration = Duration::from_secs(80);

/// Where to ask, and the connection that was good last.
pub(super) struct Sidecars {
    targets: Vec<Target>,
    environment: Environment,
    actor: String,
    good: Option<(usize, Client)>,
}

impl Sidecars {
    /// Without an endpoint, the local one.
    pub(super) fn new(endpoints: &[String], environment: &Environment) -> Sidecars {
        let mut targets: Vec<Target> =
            endpoints.iter().map(|endpoint| Target { endpoint: Some(endpoint.clone()) }).collect();
        if targets.is_empty() {
            targets.push(Target { endpoint: None });
        }
        Sidecars { targets, actor: asked::actor(environment), environment: environment.clone(), good: None }
    }

    /// How the site is, by the first sidecar that answers. One that hears no majority is asked last: another may.
    ///
    /// # Errors
    /// The last sidecar's trouble, if none answers.
    pub(super) async fn report(&mut self) -> Result<Report, Trouble> {
        let mut alone = None;
        let mut trouble = None;
        let begin = self.good.as_ref().map_or(0, |(n, _)| *n);
        for n in (begin..self.targets.len()).chain(0..begin) {
            match self.ask(n).await {
                Ok(report) if report.quorum => return Ok(report),
                Ok(report) => alone = Some(report),
                // A wrong endpoint is wrong for good.
                Err(wrong) if wrong.code == super::super::USAGE => return Err(wrong),
                Err(why) => trouble = Some(why),
            }
        }
        match (alone, trouble) {
            (Some(report), _) => Ok(report),
            (None, Some(trouble)) => Err(trouble),
            // There is always at least one target.
            (None, None) => read_report("").map(|_| Report::default()),
        }
    }

    async fn ask(&mut self, n: usize) -> Result<Report, Trouble> {
        let mut client = match self.good.take() {
            Some((at, client)) if at == n => client,
            _ => self.targets[n].connect(&self.environment, ANSWER_TIME).await?,
        };
        let report = read_report(&client.status().await?)?;
        self.good = Some((n, client));
        Ok(report)
    }

    /// Hands the workload over, asking the sidecar that answered last.
    ///
    /// # Errors
    /// What the sidecar says against it. It may have happened all the same, if the answer was lost.
    pub(super) async fn transfer(&mut self, to: &str) -> Result<(), Trouble> {
        let n = self.good.as_ref().map_or(0, |(n, _)| *n);
        let mut client = self.targets[n].connect(&self.environment, TRANSFER_TIME).await?;
        let request =
            TransferRequest { to: to.to_owned(), reason: "update".into(), actor: self.actor.clone() };
        client.stub.transfer(request).await.map(|_| ()).map_err(|status| client.trouble(&status))
    }
}
