//! The hub door: read a twin, patch a twin if its etag still matches.
//!
//! The hub is a mirror and a post box, never an authority: nothing under `ownership/` or `raft/` imports this room.
//! A hub that is slow, wrong or away costs nothing on site.

use std::{future::Future, pin::Pin, sync::Arc};

use serde::{Deserialize, Serialize};

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

/// The flag as it stands in one device's twin (contract section 5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flag {
    /// Whether this device owns the workload.
    pub active: bool,
    /// The device that owns; empty while nobody does.
    pub leader: String,
    /// The epoch of the newest ownership.
    pub epoch: u64,
    /// The site.
    pub site: String,
    /// Since when, RFC 3339 in UTC.
    pub since: String,
    /// Why, in one sentence.
    pub reason: String,
}

/// A hub behind a pointer.
pub type Handle = Arc<dyn Hub>;

/// Where twins are read and patched.
pub trait Hub: Send + Sync + 'static {
    /// The name to show: the hub's host.
    fn name(&self) -> &str;
}
