//! What this device runs, and whether it owns while that differs from what the site runs.

use tokio::sync::watch;

use super::Node;
use crate::{
    ownership::record::{BuildPolicy, Declared},
    reconcile::builds::BuildLoop,
};

/// Why a device that must not own with another build does not own right after its start.
const UNKNOWN: &str = "the site has not yet been told what it runs";

/// What builds have to do with the node.
#[derive(Default)]
pub(super) struct Builds {
    own: watch::Sender<Option<Declared>>,
    policy: watch::Sender<BuildPolicy>,
}

impl Builds {
    /// Whether a device owns while it runs something else than the site does.
    pub(super) fn policy(&self) -> BuildPolicy {
        *self.policy.borrow()
    }
}

impl Node {
    /// From now on the site is told what this device runs, and this device owns by this policy. To be called once, right after the
    /// start: with [`BuildPolicy::Block`] it does not own before the site has been told.
    pub fn compare_builds(self: &std::sync::Arc<Self>, policy: BuildPolicy) {
        self.builds.policy.send_replace(policy);
        if policy == BuildPolicy::Block {
            self.ails("build", Some(UNKNOWN.into()));
        }
        let node = std::sync::Arc::downgrade(self);
        let agreed = move || {
            if let Some(node) = node.upgrade() {
                node.ails("build", None);
            }
        };
        let own = self.builds.own.subscribe();
        let told =
            BuildLoop { group: self.group.clone(), own, clock: self.clock.clone(), agreed: Box::new(agreed) };
        self.spawn(told.run(self.loops.clone()));
    }

    /// The workload and what belongs to it have this fingerprint from now on.
    pub fn declare_build(&self, fingerprint: &str) {
        let roster = self.group.roster();
        roster.declare_build(fingerprint);
        let blocks = self.builds.policy() == BuildPolicy::Block;
        self.builds.own.send_replace(Some(Declared { build: roster.build(), blocks }));
    }

    /// It cannot be told what this device runs. What was known of it stays.
    pub fn has_no_build(&self, why: &str) {
        if self.builds.policy() == BuildPolicy::Block && self.builds.own.borrow().is_none() {
            self.ails("build", Some(format!("it cannot be told what it runs: {why}")));
        }
    }
}
