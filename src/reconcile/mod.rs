//! The loops: each observes, decides, acts. None imports another; they meet through watch channels that `node/` hands
//! out (only the lease's type is shared).

pub mod backoff;
pub mod builds;
pub mod candidacy;
pub mod commands;
pub mod contact;
pub mod gate;
pub mod lease;
pub mod members;
pub mod meter;
pub mod mirror;
pub mod module;
pub mod ownership;
pub mod pace;
pub mod pauses;
pub mod probes;
pub mod uplink;
