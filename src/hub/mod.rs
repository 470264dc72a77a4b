//! The hub door: read a twin, patch a twin if its etag still matches.
//!
//! The hub is a mirror and a post box, never an authority: nothing under `ownership/` or `raft/` imports this room.
//! A hub that is slow, wrong or away costs nothing on site. One trait, [`Hub`]; the real hub over REST (`rest.rs`, with
//! its credentials in `sas.rs` and `entra.rs`), and a hub in memory with the same rules (`memory.rs`, `store.rs`), the same limits
//! (`throttle.rs`) and the same troubles (`trouble.rs`). What a twin is and
//! how it changes is pure (`twin.rs`, `flag.rs`). The room never decides *what* to write: that is `reconcile/mirror.rs`.
//! It offers no retries either: a door that retries by itself hides trouble from the loop that has to report it.

pub mod connection_string;
pub mod edge;
pub mod entra;
pub mod error;
pub mod flag;
pub mod link;
pub mod memory;
pub mod memory_link;
pub mod mqtt;
pub mod query;
pub mod reported;
pub mod rest;
pub mod sas;
pub mod settings;
pub mod spots;
pub mod store;
pub mod target;
pub mod throttle;
pub mod trouble;
pub mod twin;
pub mod verbs;
pub mod wall;
pub mod workload_api;

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::Arc};

pub use error::{Error, Retry};
pub use flag::{Flag, FlagPath};
pub use settings::{MirrorKind, Settings};
pub use spots::Spots;
pub use target::Target;
pub use twin::{Change, Twin};

use crate::id::{DeviceId, SiteId};

/// A boxed future, so that hubs can be handed in behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the site has agreed, as far as the cloud is told: the input of the mirror loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The site.
    pub site: SiteId,
    /// Every device that has a flag.
    pub devices: Vec<DeviceId>,
    /// The owner; `None` while nobody owns.
    pub owner: Option<DeviceId>,
    /// The epoch of the newest ownership.
    pub epoch: u64,
    /// When it began, as the claiming device's wall clock had it, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Why it began, in one sentence.
    pub reason: String,
}

/// What the twins were once confirmed to show, by whichever member mirrored then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmed {
    /// What the site had agreed then.
    pub shown: Published,
    /// The etag of each device's twin, as it was then.
    pub etags: BTreeMap<DeviceId, String>,
}

/// A hub behind a pointer.
pub type Handle = Arc<dyn Hub>;

/// Where twins are read and patched.
///
/// Every call ends within the implementation's own deadline. Dropping a call's future gives up waiting; a patch may
/// have been applied all the same, so whoever drops one reads the twin before writing again.
pub trait Hub: Send + Sync + 'static {
    /// The name to show: the hub's host.
    fn name(&self) -> &str;

    /// Whether anything at the hub's address would take a call; far cheaper than one, and not counted by the hub.
    ///
    /// # Errors
    /// [`Error::Unreachable`] or [`Error::TimedOut`].
    fn knock(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// Reads a twin.
    ///
    /// # Errors
    /// [`Error`]; it knows its condition and whether and when to try again.
    fn get_twin<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Twin, Error>>;

    /// Merges `change` into a twin and returns the new twin. With `if_match` (a bare etag) only if the twin
    /// has not changed since.
    ///
    /// # Errors
    /// [`Error::Changed`] if the etag no longer matches. After [`Error::TimedOut`] and [`Error::Unreachable`] the change
    /// may have been applied: read before writing again.
    fn patch_twin<'a>(
        &'a self,
        target: &'a Target,
        change: &'a Change,
        if_match: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Twin, Error>>;
}
