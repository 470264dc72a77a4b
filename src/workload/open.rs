//! The one way in for whoever puts a sidecar together: settings in, a workload out, and nothing of an earlier life left.
//!
//! The rule "end the remains first, then claim anew" (`process.rs`) also holds when the kind was changed to `none`
//! between two lives, so it is kept here for every kind.

use tokio::sync::watch;

use super::{Context, Error, Handle, Kind, OwnershipOnly, ProcessWorkload, Settings};
use crate::{clock::Moment, condition::Raised};

/// A workload that is certainly not running yet.
pub struct Opened {
    /// The workload.
    pub workload: Handle,
    /// What an operator should know about it.
    pub conditions: watch::Receiver<Vec<Raised>>,
}

/// Makes the workload that `settings` describe, which must have no faults, and waits until nothing of an earlier life
/// of it runs, at most until `by`. Dropping the future undoes it. Call it again after an error.
///
/// # Errors
/// [`Error::Fencer`] if that is not certain by then. Take no part in elections before it is.
pub async fn open(settings: &Settings, context: Context, by: Moment) -> Result<Opened, Error> {
    match settings.kind {
        Kind::Process => {
            let workload = ProcessWorkload::new(settings, context);
            workload.ensure_none_running(by).await?;
            let conditions = workload.conditions();
            Ok(Opened { workload: std::sync::Arc::new(workload), conditions })
        }
        Kind::None => {
            let (clock, tracker, leave) =
                (context.clock.clone(), context.tracker.clone(), context.leave.clone());
            ProcessWorkload::new(settings, context).ensure_none_running(by).await?;
            let workload = OwnershipOnly::new(clock, &tracker, leave);
            let (_, conditions) = watch::channel(Vec::new());
            Ok(Opened { workload: std::sync::Arc::new(workload), conditions })
        }
    }
}
