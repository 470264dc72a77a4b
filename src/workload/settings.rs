//! What the doors of this room are told about the workload.
//!
//! The configuration is read, and its faults are named, elsewhere. Whether the program exists is not looked at here: that is
//! found out, and said, when it is started.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{fencer::SELF, limits::Limits, readiness::Demand, runtime::Api, user::User};
use crate::timing::Timing;

/// How long a planned stop may wait for a workload.
pub const STOP_TIMEOUT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(60);

/// What kind of thing the workload is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// Nothing is started here; others ask who owns.
    #[default]
    None,
    /// A process that the sidecar starts, and that is ended when the lease ends.
    Process,
}

/// A workload, whatever kind the configuration calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether anything is started.
    pub kind: Kind,
    /// The program and its arguments. No shell is involved.
    pub command: Vec<String>,
    /// What undoes whatever the workload leaves behind that is no process (an address, a container), and its arguments. It is run after
    /// each end of the workload and before its first start, until it exits with 0. It must do no harm where there is nothing to undo.
    pub undo: Vec<String>,
    /// The folder to run in. Default: the sidecar's own.
    pub working_dir: Option<PathBuf>,
    /// Whom it runs as. Default: as the sidecar does. Only root may start it as another user.
    pub user: Option<User>,
    /// What it may use of the device.
    pub limits: Limits,
    /// Whether it has to say that it is ready. `None`: it is once it is started.
    pub ready: Option<Demand>,
    /// Environment variables for the workload, besides those the sidecar itself has. Names starting with `QUORATE_`
    /// belong to Quorate.
    pub env: BTreeMap<String, String>,
    /// From the end of the lease to the workload's certain death: TERM at once, KILL after three quarters of it.
    /// `"10ms"` to `"60s"`; the same on all devices of a site. Default `"80ms"`.
    pub stop_grace: Duration,
    /// How long a planned stop (handover, SIGTERM) waits for the workload before KILL, while the lease is renewed.
    /// `"10ms"` to `"60s"`; each device may have its own. Default `"10s"`.
    pub stop_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            kind: Kind::None,
            command: Vec::new(),
            undo: Vec::new(),
            working_dir: None,
            user: None,
            limits: Limits::default(),
            ready: None,
            env: BTreeMap::new(),
            stop_grace: crate::timing::Settings::default().stop_grace,
            stop_timeout: Duration::from_secs(10),
        }
    }
}

impl Settings {
    /// A container in place of a process: what runs it, what ends it, and until when.
    pub fn container(api: Api, socket: &Path, name: &str, stop_timeout: Duration) -> Settings {
        let words = |what: &str| {
            let socket = socket.to_string_lossy().into_owned();
            let patience = stop_timeout.as_millis().to_string();
            vec![SELF.into(), what.into(), api.noun().into(), socket, name.into(), patience]
        };
        Settings {
            kind: Kind::Process,
            command: words("workload-runner"),
            undo: words("workload-undo"),
            stop_timeout,
            ..Settings::default()
        }
    }

    /// Hooks in place of a process: one when this device becomes the owner, one when it is the owner no more.
    pub fn hooks(on_owner: &[String], on_standby: &[String]) -> Settings {
        let hold = [SELF.to_owned(), "workload-hold".to_owned()];
        Settings {
            kind: Kind::Process,
            command: hold.into_iter().chain(on_owner.iter().cloned()).collect(),
            undo: on_standby.to_vec(),
            ..Settings::default()
        }
    }

    /// From the deadline to KILL. What has to be undone afterwards needs its part of the grace.
    pub(super) fn kill_after(&self, timing: &Timing) -> Duration {
        if self.undo.is_empty() { timing.kill_after() } else { timing.stop_grace() / 2 }
    }
}
