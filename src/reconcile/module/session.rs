//! One life of the module's link: read the twin, say what it lacks, hand on what comes in, until the link ends.
//!
//! It waits for nothing without letting the link work and taking its events. What outlives a link is in `module.rs`.

use std::{future::Future, time::Duration};

use tokio::{sync::mpsc, time::Instant};

use super::{Desired, FORWARDED, ROLLED_BACK, STABLE, Step, Work, plan};
use crate::{
    hub::{
        BoxFuture, Error, FlagPath,
        link::{self, Call, Connected, Event, Input, OwnTwin},
        reported::KEY,
        twin::{Properties, merge},
    },
    reconcile::backoff::jittered,
};

/// The most that desired properties may come to, in bytes of JSON: the hub's 32 KB, with room for how it counts.
const DESIRED_MAX: usize = 128 * 1024;

/// Why and when a link ended.
pub(super) struct Ended {
    pub(super) why: Result<(), Error>,
    pub(super) lasted: Duration,
}

/// One link's life.
pub(super) struct Session<'a> {
    work: &'a mut Work,
    pub(super) link: link::Handle,
    events: mpsc::Receiver<Event>,
    pub(super) runs: BoxFuture<'static, Result<(), Error>>,
    begun: Instant,
    /// The twin, as it was read last and as it has become since. `None`: it has to be read.
    twin: Option<OwnTwin>,
    /// When it is read again.
    compare_at: Instant,
    /// How long an edgeHub was last given to bring a patch to the cloud.
    patience: Duration,
    /// The hub asked, or needs, to be left alone until then.
    quiet_until: Option<Instant>,
}

impl<'a> Session<'a> {
    pub(super) fn new(work: &'a mut Work, connected: Connected) -> Session<'a> {
        let now = Instant::now();
        Session {
            work,
            link: connected.link,
            events: connected.events,
            runs: connected.runs,
            begun: now,
            twin: None,
            compare_at: now,
            patience: FORWARDED,
            quiet_until: None,
        }
    }

    /// Until the link ends.
    pub(super) async fn run(&mut self) -> Ended {
        let why = loop {
            match self.step().await {
                Ok(()) => {}
                Err(why) => break why,
            }
        };
        Ended { why, lasted: self.begun.elapsed() }
    }

    /// Does the next thing. Ends with why the link has ended.
    async fn step(&mut self) -> Result<(), Result<(), Error>> {
        if let Some(until) = self.quiet_until {
            self.wait(until).await?;
            if Instant::now() >= until {
                self.quiet_until = None;
                self.work.progress.next_attempt(None);
            }
            return Ok(());
        }
        let Some(twin) = &self.twin else {
            let link = self.link.clone();
            let read = self.attend(link.get_twin()).await?;
            return self.read(read);
        };
        let Some(wanted) = &self.work.wanted else { return self.wait(self.compare_at).await };
        match plan(wanted, &twin.reported) {
            Step::Ahead(shown) => {
                let reached = wanted.flag.epoch;
                self.work.progress.shows(shown);
                self.work.progress.ahead(Some((shown, reached)));
                self.rest(false).await
            }
            Step::Done => {
                self.work.progress.ahead(None);
                self.work.progress.compared(true, true);
                self.rest(true).await
            }
            Step::Report { mut patch, urgent } => {
                self.work.progress.ahead(None);
                self.work.progress.compared(false, !urgent);
                self.work.show();
                let free = self.work.reported_at.map(|at| at + self.work.spacing);
                if let Some(free) = free.filter(|free| !urgent && *free > Instant::now()) {
                    return self.wait(free).await;
                }
                self.work.stamp(&mut patch);
                self.report(patch, urgent).await
            }
        }
    }

    /// All is said, or nothing may be: until something changes or it is time to compare.
    async fn rest(&mut self, done: bool) -> Result<(), Result<(), Error>> {
        if done && self.begun.elapsed() >= STABLE {
            self.work.backoff.reset();
        }
        self.work.show();
        let told =
            self.work.progress.told_until().map(|until| {
                Instant::now() + until.since(self.work.this.clock.now()) + Duration::from_millis(1)
            });
        let until = told.map_or(self.compare_at, |told| told.min(self.compare_at));
        self.wait(until).await?;
        if Instant::now() >= self.compare_at {
            self.twin = None;
        }
        Ok(())
    }

    /// The answer to a reading of the twin.
    fn read(&mut self, read: Result<OwnTwin, Error>) -> Result<(), Result<(), Error>> {
        self.work.progress.count(read.as_ref().err());
        let twin = match read {
            Ok(twin) => twin,
            Err(error) => return self.failed(error),
        };
        self.work.progress.answered(self.work.this.clock.wall_ms());
        let epoch = FlagPath::default().read(&twin.reported).epoch;
        self.work.compare_with_before(&twin, epoch);
        self.work.progress.shows(epoch);
        let refresh = jittered(self.work.this.refresh, (self.work.this.dice)());
        // What was written lately is looked at once more when a failover could have taken it back.
        let young = self.work.reported_at.map(|at| at + ROLLED_BACK).filter(|at| *at > Instant::now());
        let next = Instant::now() + refresh;
        self.compare_at = young.map_or(next, |young| young.min(next));
        self.patience = FORWARDED.max(self.patience / 2);
        self.desired(&twin);
        self.twin = Some(twin);
        Ok(())
    }

    fn desired(&self, twin: &OwnTwin) {
        let said = twin.reported.get(KEY).and_then(|said| said.get("commands")?.as_object());
        let desired = Desired {
            properties: twin.desired.clone(),
            version: twin.desired_version,
            commands: said.cloned().unwrap_or_default(),
        };
        self.work.this.inbox.desired.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&desired);
            *known = Some(desired);
            changed
        });
    }

    async fn report(&mut self, patch: Properties, urgent: bool) -> Result<(), Result<(), Error>> {
        let link = self.link.clone();
        let said = self.attend(link.report(&patch)).await?;
        let now = Instant::now();
        self.work.progress.count(said.as_ref().err());
        let version = match said {
            Ok(version) => version,
            Err(error) => {
                // It may have been applied all the same.
                self.twin = None;
                return self.failed(error);
            }
        };
        self.work.space(urgent, now);
        self.work.progress.answered(self.work.this.clock.wall_ms());
        let Some(twin) = &mut self.twin else { return Ok(()) };
        merge(&mut twin.reported, &patch);
        let epoch = FlagPath::default().read(&twin.reported).epoch;
        match version {
            Some(version) => {
                twin.reported_version = version;
                self.work.confirmed = Some((epoch, version));
                self.work.progress.shows(epoch);
                self.compare_at = self.compare_at.min(now + ROLLED_BACK);
            }
            // Stored; whether the cloud has it only a reading can tell.
            None => {
                self.compare_at = self.compare_at.min(now + jittered(self.patience, (self.work.this.dice)()));
                self.patience = (self.patience * 2).min(self.work.this.refresh.max(FORWARDED));
            }
        }
        if urgent && epoch > 0 {
            tracing::info!(who = self.work.who, epoch, "the module twin was told who owns");
        }
        self.work.show();
        Ok(())
    }

    /// A call failed. A hub that answered keeps its link, and is left alone for a while.
    fn failed(&mut self, error: Error) -> Result<(), Result<(), Error>> {
        tracing::debug!(who = self.work.who, %error, "the hub did not do it");
        if !error.answered() {
            return Err(Err(error));
        }
        let length = self.work.pause_after(&error, self.begun);
        self.work.progress.trouble(error);
        self.work.progress.next_attempt(Some(self.work.this.clock.now() + length));
        self.work.show();
        self.quiet_until = Some(Instant::now() + length);
        Ok(())
    }

    /// Waits until then, or until something else is wanted.
    async fn wait(&mut self, until: Instant) -> Result<(), Result<(), Error>> {
        loop {
            tokio::select! {
                biased;
                ended = &mut self.runs => return Err(ended),
                Some(event) = self.events.recv() => {
                    let known = self.twin.is_some();
                    self.enter(event)?;
                    if known && self.twin.is_none() {
                        return Ok(());
                    }
                }
                changed = self.work.this.wanted.changed() => match changed {
                    Ok(()) => {
                        self.work.look();
                        return Ok(());
                    }
                    // Nobody can say anything any more: this sidecar is leaving.
                    Err(_) => std::future::pending().await,
                },
                () = tokio::time::sleep_until(until) => return Ok(()),
            }
        }
    }

    /// Lets a call finish while the link works, takes events, and notes what is wanted meanwhile.
    async fn attend<T>(&mut self, call: impl Future<Output = T>) -> Result<T, Result<(), Error>> {
        tokio::pin!(call);
        loop {
            tokio::select! {
                biased;
                done = &mut call => return Ok(done),
                ended = &mut self.runs => return Err(ended),
                Some(event) = self.events.recv() => self.enter(event)?,
                Ok(()) = self.work.this.wanted.changed() => self.work.look(),
            }
        }
    }

    /// Hands an event on.
    fn enter(&mut self, event: Event) -> Result<(), Result<(), Error>> {
        match event {
            Event::Desired { patch, version } => self.changed(&patch, version),
            Event::Call { id, method, payload } => {
                let call = Call { link: self.link.clone(), id, method, payload };
                if let Err(refused) = self.work.this.inbox.calls.try_send(call) {
                    // The caller is told by the hub that nobody answered.
                    let call = refused.into_inner();
                    tracing::warn!(method = call.method, "a call from the cloud was dropped: too many");
                }
                Ok(())
            }
            Event::Input { number, input, message } => {
                let input = Input { link: self.link.clone(), number, input, message };
                self.work.this.inbox.inputs.try_send(input).map_err(|_| {
                    Err(Error::Unreachable(
                        "too many messages wait to be passed on; the link was ended".into(),
                    ))
                })
            }
        }
    }

    /// The cloud wants something else.
    fn changed(&mut self, patch: &Properties, version: u64) -> Result<(), Result<(), Error>> {
        // While the twin is being read, the reading tells all.
        let Some(twin) = &mut self.twin else { return Ok(()) };
        match version.checked_sub(twin.desired_version) {
            None | Some(0) => {}
            Some(1) => {
                merge(&mut twin.desired, patch);
                if serde_json::to_vec(&twin.desired).map_or(0, |json| json.len()) > DESIRED_MAX {
                    // No hub holds that much.
                    self.twin = None;
                    return Ok(());
                }
                twin.desired_version = version;
                let twin = twin.clone();
                self.desired(&twin);
            }
            // One was lost.
            Some(_) => self.twin = None,
        }
        Ok(())
    }
}
