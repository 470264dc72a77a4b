//! The gate: messages of the workload that are routed through the sidecar leave on the owner alone, and say under which
//! epoch.
//!
//! A workload that knows nothing of ownership may run on every device, or run on a little after it lost it. Its messages reach
//! the hub only while this device holds the lease, looked at again right before each is sent. What comes in otherwise is settled
//! and dropped. A message that leaves is settled only once the hub, or the edgeHub, has taken it; if that fails it is left
//! unsettled and comes again on the next link. So nothing is lost on the owner, and a message may be sent twice.
//!
//! It holds few messages at a time, decides nothing about ownership, and looks at no message's body.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::lease::Held;
use crate::{
    clock::Clock,
    epoch::Epoch,
    hub::{
        link::{Input, Message},
        settings,
    },
    id::SiteId,
};

/// Messages on their way at once: more would only wait in the link.
const ON_THE_WAY: usize = 16;
/// The properties that it adds; what the workload wrote under these names is replaced.
const STAMPS: [&str; 3] = ["quorate_epoch", "quorate_seq", "quorate_site"];
/// Properties that are about the way in, not about the message.
const OF_THE_WAY: [&str; 3] = ["$.cdid", "$.cmid", "$.on"];

/// What became of messages, since the start.
#[derive(Debug, Clone, Default)]
pub struct Counts(Arc<[AtomicU64; 4]>);

/// What became of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The hub, or the edgeHub, has it.
    Forwarded,
    /// This device did not own.
    Dropped,
    /// It came to an input that is not the gate's.
    Stray,
    /// It could not be sent, and comes again.
    Failed,
}

impl Fate {
    const ALL: [Fate; 4] = [Fate::Forwarded, Fate::Dropped, Fate::Stray, Fate::Failed];

    /// As the metric's label has it.
    pub fn name(self) -> &'static str {
        match self {
            Fate::Forwarded => "forwarded",
            Fate::Dropped => "dropped",
            Fate::Stray => "stray",
            Fate::Failed => "failed",
        }
    }
}

impl Counts {
    fn count(&self, fate: Fate) {
        if let Some(counter) = self.0.get(fate as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many of each.
    pub fn all(&self) -> impl Iterator<Item = (Fate, u64)> {
        Fate::ALL.into_iter().zip(self.0.iter().map(|counter| counter.load(Ordering::Relaxed)))
    }
}

/// The loop, with all that it needs.
pub struct GateLoop {
    /// What comes in.
    pub inputs: mpsc::Receiver<Input>,
    /// This device's lease.
    pub held: watch::Receiver<Option<Held>>,
    /// The clock that leases are counted on.
    pub clock: Arc<dyn Clock>,
    /// The site, to be named in each message.
    pub site: SiteId,
    /// Which way.
    pub gate: settings::Gate,
    /// What became of messages.
    pub counts: Counts,
}

type OnTheWay = Pin<Box<dyn Future<Output = Fate> + Send>>;

impl GateLoop {
    /// Runs until `stop` is cancelled, or until nothing can come in any more. What is on its way then is left unsettled.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut on_the_way: FuturesUnordered<OnTheWay> = FuturesUnordered::new();
        let mut stamp = Stamp::default();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(fate) = on_the_way.next() => self.counts.count(fate),
                input = self.inputs.recv(), if on_the_way.len() < ON_THE_WAY => match input {
                    Some(input) => on_the_way.push(self.pass(input, &mut stamp)),
                    None => return,
                },
            }
        }
    }

    /// Decides about one message, now, and does it.
    fn pass(&self, input: Input, stamp: &mut Stamp) -> OnTheWay {
        let Input { link, number, input, message } = input;
        let epoch = self.epoch();
        let fate = match epoch {
            _ if input != self.gate.input => Fate::Stray,
            None => Fate::Dropped,
            Some(_) => Fate::Forwarded,
        };
        let Some(epoch) = epoch.filter(|_| fate == Fate::Forwarded) else {
            return Box::pin(async move {
                match link.settle(number).await {
                    Ok(()) => fate,
                    Err(_) => Fate::Failed,
                }
            });
        };
        let message = stamp.put(message, epoch, &self.site);
        let (held, clock, output) = (self.held.clone(), self.clock.clone(), self.gate.output.clone());
        Box::pin(async move {
            // The first moment at which it is sent is the first at which this is polled; it may have waited for its turn.
            if owns(&held, &*clock) != Some(epoch) {
                return match link.settle(number).await {
                    Ok(()) => Fate::Dropped,
                    Err(_) => Fate::Failed,
                };
            }
            let sent = async {
                link.send(&output, &message).await?;
                link.settle(number).await
            };
            let mut lease = held.clone();
            let sent = tokio::select! {
                biased;
                sent = sent => Some(sent),
                // What still waits for its turn then does not leave any more.
                _ = lease.wait_for(|held| held.as_ref().map(|held| held.epoch) != Some(epoch)) => None,
            };
            match sent {
                Some(Ok(())) => Fate::Forwarded,
                None => Fate::Failed,
                Some(Err(error)) => {
                    tracing::debug!(%error, "a message of the workload was not taken; it comes again");
                    Fate::Failed
                }
            }
        })
    }

    fn epoch(&self) -> Option<Epoch> {
        owns(&self.held, &*self.clock)
    }
}

/// Under which epoch this device may act at this moment.
fn owns(held: &watch::Receiver<Option<Held>>, clock: &dyn Clock) -> Option<Epoch> {
    let held = *held.borrow();
    held.filter(|held| clock.now() < held.until).map(|held| held.epoch)
}

/// Numbers the messages of each epoch.
#[derive(Debug, Default)]
struct Stamp {
    epoch: Epoch,
    seq: u64,
}

impl Stamp {
    fn put(&mut self, mut message: Message, epoch: Epoch, site: &SiteId) -> Message {
        if epoch != self.epoch {
            *self = Stamp { epoch, seq: 0 };
        }
        self.seq += 1;
        message.properties.retain(|(name, _)| !STAMPS.contains(&name.as_str()));
        message.system.retain(|(name, _)| !OF_THE_WAY.contains(&name.as_str()));
        let values = [epoch.to_string(), self.seq.to_string(), site.to_string()];
        message.properties.extend(STAMPS.iter().map(|name| (*name).to_owned()).zip(values));
        message
    }
}

#[cfg(test)]
mod tests;
