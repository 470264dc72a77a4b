//! What this device sees of the plant, asked once by each of the site's probes. The workload's own probes are tried by
//! `quorate check-workload`, for it runs only on the owner.

use super::hub::Tried;
use crate::{
    clock::{BootClock, Clock as _},
    config::Config,
    probe::{self, Target},
};

/// Each probe of the plant, asked once.
pub(super) async fn tries(config: &Config) -> Vec<Tried> {
    let plant = config.probes.iter().filter(|probe| probe.role == probe::Role::Plant);
    let asked = plant.map(async |settings| {
        let began = BootClock.now();
        let mut probe = probe::open(settings);
        let mut answer = tokio::time::timeout(settings.timeout, probe.ask()).await;
        if matches!(settings.target, Target::Heartbeat(_)) {
            // Whether it was written since it was last looked at.
            tokio::time::sleep(settings.every).await;
            answer = tokio::time::timeout(settings.timeout, probe.ask()).await;
        }
        let answer =
            answer.unwrap_or_else(|_| Err(format!("no answer within {} ms", settings.timeout.as_millis())));
        Tried {
            what: format!("the probe {} ({})", settings.name, settings.target.kind()),
            took_ms: u64::try_from(BootClock.now().since(began).as_millis()).unwrap_or(u64::MAX),
            error: answer.err().map(|why| format!("{why}; see to its target, or to this device's way there")),
        }
    });
    futures_util::future::join_all(asked).await
}
