//! Who is connected, what each has subscribed to, and what is under way to it.
//!
//! One link per identity: the newest wins, as at the hub. Subscriptions of a client that asked for it are kept while it is
//! away, messages are not: the hub keeps no missed changes of a twin and no methods. Nothing here waits for a client:
//! each link has a short queue, and a client that lets it fill up is cut off.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::topic;
use crate::hub::store::Target;

/// The most messages waiting for one client.
const QUEUE: usize = 256;

/// A message on its way to a client.
#[derive(Debug)]
pub(in crate::emulator) struct Outgoing {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    /// 0 or 1, as it was granted.
    pub(super) quality: u8,
    /// Told when the client has acknowledged it, at quality 1.
    pub(super) acked: Option<oneshot::Sender<()>>,
}

/// A link as its connection holds it.
pub(super) struct Joined {
    /// Tells this link from every other.
    pub(super) number: u64,
    pub(super) queue: mpsc::Receiver<Outgoing>,
    /// Cancelled when the link has to end.
    pub(super) cut: CancellationToken,
    /// Whether subscriptions were kept.
    pub(super) session_present: bool,
}

struct Slot {
    number: u64,
    clean: bool,
    filters: BTreeMap<String, u8>,
    queue: mpsc::Sender<Outgoing>,
    cut: CancellationToken,
}

struct Call {
    target: Target,
    link: u64,
    reply: oneshot::Sender<(i64, Bytes)>,
}

#[derive(Default)]
struct Inner {
    links: BTreeMap<Target, Slot>,
    /// Subscriptions of those who are away.
    kept: BTreeMap<Target, BTreeMap<String, u8>>,
    calls: BTreeMap<String, Call>,
    counter: u64,
    joined: u64,
}

/// Why a method gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::emulator) enum NoReply {
    /// It is not connected, or takes no methods.
    Offline,
    /// It did not answer in time, or its link ended first.
    TimedOut,
}

/// All links of a hub, or of a gateway.
pub(in crate::emulator) struct Links {
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

impl Links {
    pub(in crate::emulator) fn new() -> Links {
        Links { inner: Mutex::default(), changed: watch::Sender::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client has been let in; an older link of the same identity is cut.
    pub(super) fn join(&self, who: &Target, clean: bool, cut: CancellationToken) -> Joined {
        let (sender, queue) = mpsc::channel(QUEUE);
        let mut inner = self.lock();
        inner.counter += 1;
        inner.joined += 1;
        let number = inner.counter;
        let kept = inner.kept.remove(who);
        let older = inner.links.remove(who);
        if let Some(older) = &older {
            older.cut.cancel();
        }
        // What an older link still holds was subscribed by the same client.
        let kept = kept.or(older.filter(|older| !older.clean).map(|older| older.filters));
        let kept = kept.filter(|_| !clean);
        let session_present = kept.is_some();
        let filters = kept.unwrap_or_default();
        inner.links.insert(who.clone(), Slot { number, clean, filters, queue: sender, cut: cut.clone() });
        drop(inner);
        self.changed.send_replace(());
        Joined { number, queue, cut, session_present }
    }

    /// A link has ended. Whether it was its identity's newest.
    pub(super) fn leave(&self, who: &Target, number: u64) -> bool {
        let mut inner = self.lock();
        inner.calls.retain(|_, call| call.link != number);
        if inner.links.get(who).is_none_or(|slot| slot.number != number) {
            return false;
        }
        if let Some(slot) = inner.links.remove(who).filter(|slot| !slot.clean) {
            inner.kept.insert(who.clone(), slot.filters);
        }
        drop(inner);
        self.changed.send_replace(());
        true
    }

    /// Subscribes, if this link is its identity's newest.
    pub(super) fn subscribe(&self, who: &Target, number: u64, filter: String, quality: u8) {
        if let Some(slot) = self.lock().links.get_mut(who).filter(|slot| slot.number == number) {
            slot.filters.insert(filter, quality);
        }
        self.changed.send_replace(());
    }

    pub(super) fn unsubscribe(&self, who: &Target, number: u64, filter: &str) {
        if let Some(slot) = self.lock().links.get_mut(who).filter(|slot| slot.number == number) {
            slot.filters.remove(filter);
        }
    }

    /// Told whenever somebody connects, leaves or subscribes.
    pub(in crate::emulator) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Whether it is connected.
    pub(in crate::emulator) fn connected(&self, who: &Target) -> bool {
        self.lock().links.contains_key(who)
    }

    /// How many links there ever were.
    pub(in crate::emulator) fn joined(&self) -> u64 {
        self.lock().joined
    }

    /// All that are connected, in order of name.
    pub(in crate::emulator) fn all(&self) -> Vec<Target> {
        self.lock().links.keys().cloned().collect()
    }

    /// Whether it is connected and has subscribed to what `topic` belongs to.
    pub(in crate::emulator) fn listens(&self, who: &Target, topic: &str) -> bool {
        self.lock().links.get(who).is_some_and(|slot| slot.quality(topic).is_some())
    }

    /// Sends a message to `who`, if it is connected and has subscribed to it. Whether it is under way.
    pub(in crate::emulator) fn push(
        &self,
        who: &Target,
        topic: String,
        payload: Bytes,
        acked: Option<oneshot::Sender<()>>,
    ) -> bool {
        self.lock().links.get(who).is_some_and(|slot| slot.push(topic, payload, acked))
    }

    /// Cuts the links of all whom `condemned` names. Their subscriptions go with them.
    pub(in crate::emulator) fn cut(&self, condemned: impl Fn(&Target) -> bool) {
        let mut inner = self.lock();
        inner.kept.retain(|who, _| !condemned(who));
        for (_, slot) in inner.links.iter_mut().filter(|(who, _)| condemned(who)) {
            slot.clean = true;
            slot.cut.cancel();
        }
    }

    /// Calls a method and waits for its answer: at most `connect` until the client takes methods, then at most `answer`.
    /// Cancel-safe.
    pub(in crate::emulator) async fn call(
        &self,
        who: &Target,
        name: &str,
        payload: Bytes,
        connect: Duration,
        answer: Duration,
    ) -> Result<(i64, Bytes), NoReply> {
        let mut changes = self.changes();
        let under_way = tokio::time::timeout(connect, async {
            loop {
                changes.mark_unchanged();
                if let Some(call) = self.start(who, name, &payload) {
                    return Some(call);
                }
                if connect.is_zero() || changes.changed().await.is_err() {
                    return None;
                }
            }
        });
        let Ok(Some((rid, reply))) = under_way.await else { return Err(NoReply::Offline) };
        let _forget = Forget { links: self, rid };
        match tokio::time::timeout(answer, reply).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) | Err(_) => Err(NoReply::TimedOut),
        }
    }

    fn start(
        &self,
        who: &Target,
        name: &str,
        payload: &Bytes,
    ) -> Option<(String, oneshot::Receiver<(i64, Bytes)>)> {
        let mut inner = self.lock();
        inner.counter += 1;
        let rid = format!("{:x}", inner.counter);
        let slot = inner.links.get(who)?;
        if !slot.push(topic::method(name, &rid), payload.clone(), None) {
            return None;
        }
        let (reply, received) = oneshot::channel();
        let call = Call { target: who.clone(), link: slot.number, reply };
        inner.calls.insert(rid.clone(), call);
        Some((rid, received))
    }

    /// A client's answer to a method. One that nobody waits for is dropped.
    pub(super) fn replied(&self, from: &Target, rid: &str, status: i64, payload: Bytes) {
        let mut inner = self.lock();
        if inner.calls.get(rid).is_some_and(|call| call.target == *from)
            && let Some(call) = inner.calls.remove(rid)
        {
            let _taken = call.reply.send((status, payload)).is_ok();
        }
    }
}

impl Slot {
    fn quality(&self, topic: &str) -> Option<u8> {
        let granted = self.filters.iter().filter(|(filter, _)| topic::matches(filter, topic));
        granted.map(|(_, quality)| *quality).max()
    }

    fn push(&self, topic: String, payload: Bytes, acked: Option<oneshot::Sender<()>>) -> bool {
        let Some(quality) = self.quality(&topic) else { return false };
        let sent = self.queue.try_send(Outgoing { topic, payload, quality, acked }).is_ok();
        if !sent {
            // It has not read for a long time.
            self.cut.cancel();
        }
        sent
    }
}

/// Nobody waits for this call any more.
struct Forget<'a> {
    links: &'a Links,
    rid: String,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.links.lock().calls.remove(&self.rid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHODS: &str = "$iothub/methods/POST/#";

    fn target() -> Target {
        Target::module("d", "m")
    }

    fn join(links: &Links, clean: bool) -> Joined {
        links.join(&target(), clean, CancellationToken::new())
    }

    #[test]
    fn the_newest_link_wins_and_an_old_one_takes_nothing_with_it() {
        let links = Links::new();
        let first = join(&links, true);
        let second = join(&links, true);
        assert!(first.cut.is_cancelled() && !second.cut.is_cancelled());
        assert!(!links.leave(&target(), first.number));
        links.subscribe(&target(), first.number, METHODS.into(), 1);
        assert!(!links.listens(&target(), "$iothub/methods/POST/x/"), "subscribed by a link that is no more");
        assert!(links.connected(&target()));
        assert!(links.leave(&target(), second.number));
        assert!(!links.connected(&target()));
    }

    #[test]
    fn subscriptions_are_kept_for_who_asks() {
        let links = Links::new();
        let first = join(&links, false);
        assert!(!first.session_present);
        links.subscribe(&target(), first.number, METHODS.into(), 1);
        links.leave(&target(), first.number);
        let mut second = join(&links, false);
        assert!(second.session_present);
        assert!(links.push(&target(), "$iothub/methods/POST/x/?$rid=1".into(), Bytes::new(), None));
        assert_eq!(second.queue.try_recv().expect("a message").quality, 1);
        // Taken over while it is still there, too; but not by who wants a clean start.
        assert!(join(&links, false).session_present);
        let clean = join(&links, true);
        assert!(!clean.session_present && !links.listens(&target(), "$iothub/methods/POST/x/"));
        links.leave(&target(), clean.number);
        assert!(!join(&links, false).session_present);
    }

    #[test]
    fn who_does_not_read_is_cut_off() {
        let links = Links::new();
        let link = join(&links, true);
        links.subscribe(&target(), link.number, METHODS.into(), 0);
        let push = || links.push(&target(), "$iothub/methods/POST/x/".into(), Bytes::new(), None);
        assert!((0..QUEUE).all(|_| push()));
        assert!(!link.cut.is_cancelled());
        assert!(!push());
        assert!(link.cut.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_method_is_answered_by_its_target_alone() {
        let links = Links::new();
        let second = Duration::from_secs(1);
        let who = target();
        let call = |connect| links.call(&who, "ping", Bytes::new(), connect, second);
        assert_eq!(call(Duration::ZERO).await, Err(NoReply::Offline));
        let mut link = join(&links, true);
        assert_eq!(call(second).await, Err(NoReply::Offline), "it takes no methods");
        let number = link.number;
        let answers = async {
            links.subscribe(&target(), number, METHODS.into(), 0);
            let message = link.queue.recv().await.expect("a method");
            let rid = message.topic.rsplit_once('=').expect("an id").1.to_owned();
            links.replied(&Target::module("d", "other"), &rid, 500, Bytes::new());
            links.replied(&target(), "none", 500, Bytes::new());
            links.replied(&target(), &rid, 200, Bytes::from_static(b"1"));
        };
        let (answer, ()) = tokio::join!(call(second), answers);
        assert_eq!(answer, Ok((200, Bytes::from_static(b"1"))));
        assert_eq!(call(second).await, Err(NoReply::TimedOut));
        let (answer, left) = tokio::join!(call(second), async { links.leave(&target(), number) });
        assert_eq!((answer, left), (Err(NoReply::TimedOut), true));
        assert!(links.lock().calls.is_empty());
    }
}
