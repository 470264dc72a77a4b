//! Consensus among the members of a site: nobody outside this room sees openraft.

pub mod log;
mod types;
pub mod vote_guard;
mod wire;
