//! Which of this member's own writes are still on their way to the disk.
//!
//! A leader sends an entry to the others, and a candidate asks for their votes, while its own disk still writes: two
//! disks then work side by side instead of one after the other, in every step of a takeover. openraft 0.9 cannot do
//! that by itself: it counts what it has appended, or voted, as soon as the store says that it is written. So the store
//! says so at once for these two, and whatever openraft concludes from it waits here until it is true:
//!
//! - an entry is applied (`machine.rs`), and with that answered for, only when the own copy of it is durable;
//! - that an entry is committed is told to the others (`peer/client.rs`) only then;
//! - the others' votes are counted (`peer/client.rs`) only when the own vote is durable, so nobody leads before that;
//! - and nothing is answered to a member (`peer/server.rs`) before all own writes are durable.
//!
//! So a crash before the write is done takes away nothing that anybody has built upon: it is as if the questions had
//! been sent and their answers lost. A member that is alone in its site asks nobody, so it waits for its disk as ever,
//! and so does a follower.

use std::{collections::BTreeMap, io, sync::Arc};

use tokio::sync::watch;

#[derive(Debug, Default)]
struct State {
    /// The number of the next write.
    next: u64,
    /// The writes under way, each with the first log index that it writes; 0 for a vote. Those that failed stay.
    under_way: BTreeMap<u64, u64>,
    /// What the first write that failed failed with.
    failed: Option<String>,
}

/// The own writes under way. Clones share everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ahead(Arc<watch::Sender<State>>);

impl Ahead {
    /// A write begins, whose first entry has this index; 0 for a vote. Says its number.
    pub(super) fn begin(&self, first: u64) -> u64 {
        let mut number = 0;
        self.0.send_modify(|state| {
            number = state.next;
            state.next += 1;
            state.under_way.insert(number, first);
        });
        number
    }

    /// The write with this number has come to its end.
    pub(super) fn end(&self, number: u64, written: &io::Result<()>) {
        self.0.send_modify(|state| match written {
            Ok(()) => {
                state.under_way.remove(&number);
            }
            Err(e) => {
                state.failed.get_or_insert_with(|| e.to_string());
            }
        });
    }

    /// Whether a write may begin.
    ///
    /// # Errors
    /// If one failed before. Told to openraft, this ends it, as an error of a write that it waits for does.
    pub(super) fn check(&self) -> io::Result<()> {
        self.0.borrow().outcome()
    }

    /// Waits until all writes before this one are durable.
    ///
    /// # Errors
    /// If one failed.
    pub(super) async fn before(&self, number: u64) -> io::Result<()> {
        self.wait(|state| state.under_way.keys().next().is_none_or(|first| *first >= number)).await
    }

    /// Waits until all writes that have begun are durable.
    ///
    /// # Errors
    /// If one failed.
    pub(crate) async fn all(&self) -> io::Result<()> {
        let next = self.0.borrow().next;
        self.before(next).await
    }

    /// Waits until the entry with this index is durable, if this member has begun to write it.
    ///
    /// # Errors
    /// If it never will be, because a write failed.
    pub(crate) async fn up_to(&self, index: u64) -> io::Result<()> {
        self.wait(|state| state.under_way.values().all(|first| *first > index)).await
    }

    async fn wait(&self, done: impl Fn(&State) -> bool) -> io::Result<()> {
        let mut state = self.0.subscribe();
        // The sender is our own.
        let state = state.wait_for(|state| state.failed.is_some() || done(state)).await;
        let state = state.map_err(io::Error::other)?;
        if done(&state) { Ok(()) } else { state.outcome() }
    }
}

impl State {
    fn outcome(&self) -> io::Result<()> {
        match &self.failed {
            Some(e) => Err(io::Error::other(format!("an own write has failed: {e}"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn each_waits_for_what_it_needs_and_no_more() {
        let ahead = Ahead::default();
        ahead.all().await.expect("nothing is under way");
        let (first, second) = (ahead.begin(4), ahead.begin(6));
        ahead.up_to(3).await.expect("written before");
        let (mut fifth, mut sixth, mut all) =
            (Box::pin(ahead.up_to(5)), Box::pin(ahead.up_to(6)), Box::pin(ahead.all()));
        assert!(poll!(&mut fifth).is_pending() && poll!(&mut all).is_pending());
        let third = ahead.begin(8);
        ahead.end(first, &Ok(()));
        fifth.await.expect("entries 4 and 5 are written");
        assert!(poll!(&mut sixth).is_pending() && poll!(&mut all).is_pending());
        ahead.end(second, &Ok(()));
        sixth.await.expect("written");
        all.await.expect("what began later is not waited for");
        let mut vote = Box::pin(ahead.up_to(0));
        let number = ahead.begin(0);
        assert!(poll!(&mut vote).is_pending(), "a vote stands before all entries");
        ahead.end(number, &Ok(()));
        vote.await.expect("written");
        ahead.end(third, &Ok(()));
    }

    #[tokio::test]
    async fn after_a_failure_nothing_counts() {
        let ahead = Ahead::default();
        let (first, second) = (ahead.begin(4), ahead.begin(5));
        let mut fifth = Box::pin(ahead.up_to(5));
        assert!(poll!(&mut fifth).is_pending());
        ahead.end(first, &Err(io::Error::other("broken")));
        fifth.await.expect_err("what came before it is missing");
        ahead.up_to(3).await.expect("written before");
        ahead.check().expect_err("no other write shall begin");
        ahead.end(second, &Ok(()));
        ahead.all().await.expect_err("for good");
    }
}
