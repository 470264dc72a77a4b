//! What Quorate promises, one file each, as a check that a simulated site runs after every millisecond.

pub mod p1_epochs;
pub mod p2_one_workload;
pub mod p3_stale_commands;
pub mod p4_owner_within_bound;
pub mod p5_twin;

use crate::stage::Stage;

/// All of them.
#[derive(Default)]
pub struct Promises {
    epochs: p1_epochs::Epochs,
    one_workload: p2_one_workload::OneWorkload,
    stale_commands: p3_stale_commands::StaleCommands,
    owner: p4_owner_within_bound::Owner,
    twin: p5_twin::Twins,
}

impl Promises {
    /// Looks at the site as it is now.
    ///
    /// # Errors
    /// The first promise that is broken, and how.
    pub fn check(&mut self, stage: &mut Stage) -> Result<(), String> {
        let told = |promise: &'static str| move |how: String| format!("{promise} is broken: {how}");
        self.epochs.check(stage).map_err(told("P1"))?;
        self.one_workload.check(&stage.ledger).map_err(told("P2"))?;
        self.stale_commands.check(stage).map_err(told("P3"))?;
        self.owner.check(stage).map_err(told("P4"))?;
        self.twin.check(stage, self.epochs.reached).map_err(told("P5"))
    }

    /// The longest that an able site was without an owner, beyond which P4 would be broken.
    pub fn longest_without_owner(&self) -> std::time::Duration {
        self.owner.longest
    }
}
