//! What the sidecar shows over HTTP: who owns, whether it is well, all it knows, metrics, and one page for people.
//!
//! One [`report::Report`] feeds everything; one [`door::Door`] is all that is needed of the node. Nothing here can
//! change anything: every request is a GET.

pub mod door;
pub mod events;
pub mod metrics;
mod ownership;
pub mod plan;
pub mod report;
pub mod ring;
pub mod said;
pub mod server;
mod stream;
pub mod update;
pub(crate) mod watch;
pub mod word;
