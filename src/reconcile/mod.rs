//! The loops: observe, decide, act. One file per loop; none imports another.

pub mod backoff;
pub mod mirror;
