//! What this device does with its workload and what is wrong here, for its own report and told to the other members, which show it
//! too.
//!
//! It goes with what members say to each other anyway: no message is sent for it, and nothing decides by it.

use tokio_util::sync::CancellationToken;

use super::{Node, door::NodeDoor};
use crate::{
    condition::Raised,
    epoch::Epoch,
    ownership::told::{Told, Work, to_tell},
    status::report,
    workload::{Observed, Ready, Words},
};

impl NodeDoor {
    /// Tells the others what is observed of the workload, on every change, until `stop`.
    pub(super) async fn tell_work(&self, stop: CancellationToken) {
        let (mut observed, mut words) = (self.node.observed.clone(), self.node.workload.words());
        loop {
            observed.mark_unchanged();
            words.iter_mut().for_each(|words| words.mark_unchanged());
            self.node.group.roster().declare_work(self.work());
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = observed.changed() => {}
                Some(()) = super::door::changes(&mut words) => {}
                else => return,
            }
        }
    }

    /// Tells the others what is raised here from now on.
    pub(super) fn tell_raised(&self, raised: &[Raised]) {
        self.node.group.roster().declare_conditions(to_tell(raised));
    }

    /// What is observed of the workload; `None` where there is none.
    pub(super) fn work(&self) -> Option<Work> {
        let words = self.node.words();
        let work = work(&self.node.observed.borrow(), words.as_ref());
        (self.surroundings.workload_kind != "none").then_some(work)
    }

    /// What the other members say, as far as they are heard now.
    pub(super) fn told<'a>(&self, members: &'a [report::Member]) -> Vec<(&'a str, Told)> {
        let roster = self.node.group.roster();
        let others = roster.site.members.iter().filter(|m| m.device != roster.me);
        let told = others.filter_map(|other| {
            let heard = members.iter().find(|m| m.reachable && m.device == other.device.as_str())?;
            Some((heard.device.as_str(), roster.contact(&other.device)?.told))
        });
        told.collect()
    }

    /// The workload on this device.
    pub(super) fn workload(&self) -> report::Workload {
        let node = &self.node;
        let (observed, words) = (node.observed.borrow().clone(), node.words());
        let state = work(&observed, words.as_ref()).name();
        let (text, pid, failures) = match &observed {
            Observed::Running { pid, .. } => (state.to_owned(), *pid, 0),
            Observed::BackingOff { failures, last, .. } => (format!("{state}: {last}"), None, *failures),
            Observed::Stopped | Observed::Stopping { .. } => (state.to_owned(), None, 0),
        };
        report::Workload {
            kind: self.surroundings.workload_kind.into(),
            observed: text,
            epoch: observed.epoch().map(Epoch::get),
            pid,
            failures,
            held_by: node.workload.held_by().map(|by| by.name().to_owned()),
            says: words.and_then(|words| words.status),
        }
    }
}

impl Node {
    fn words(&self) -> Option<Words> {
        self.workload.words().map(|words| words.borrow().clone())
    }
}

fn work(observed: &Observed, words: Option<&Words>) -> Work {
    match (observed, words.map(|words| &words.ready)) {
        (Observed::Running { .. }, Some(Ready::Starting)) => Work::Starting,
        (Observed::Running { .. }, Some(Ready::Fails(_))) => Work::NotReady,
        (Observed::Running { .. }, _) => Work::Running,
        (Observed::Stopped, _) => Work::Stopped,
        (Observed::BackingOff { .. }, _) => Work::BackingOff,
        (Observed::Stopping { .. }, _) => Work::Stopping,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_program_that_runs_is_ready_only_if_it_does_not_say_otherwise() {
        let epoch = Epoch::ZERO;
        let words = |ready| Words { ready, status: None };
        let runs = Observed::Running { epoch, pid: None };
        for (observed, ready, expected) in [
            (&runs, None, Work::Running),
            (&runs, Some(Ready::Ready { after: Duration::ZERO }), Work::Running),
            (&runs, Some(Ready::Starting), Work::Starting),
            (&runs, Some(Ready::Fails("late".into())), Work::NotReady),
            (&Observed::Stopped, Some(Ready::Absent), Work::Stopped),
            (&Observed::Stopping { epoch }, Some(Ready::Fails("late".into())), Work::Stopping),
            (
                &Observed::BackingOff { epoch, failures: 3, last: "exit code 1".into() },
                None,
                Work::BackingOff,
            ),
        ] {
            let words = ready.map(words);
            assert_eq!(work(observed, words.as_ref()), expected, "{observed:?} {words:?}");
        }
    }
}
