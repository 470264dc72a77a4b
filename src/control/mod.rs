//! The gRPC face: what people, scripts and the workload ask of the sidecar on their own device.
//!
//! It serves `proto/control.proto` with the standard health service and reflection, over TCP and a Unix socket at
//! once. An answer about ownership is given only while it is vouched for; otherwise the call fails with UNAVAILABLE
//! and the reason. All it needs of the node is `status::door`.

pub mod gate;
pub mod lease_file;
pub mod proto;
pub mod server;
pub mod service;
pub mod socket;

mod health;
