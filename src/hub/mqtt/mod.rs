//! MQTT 3.1.1, as far as IoT Hub and IoT Edge speak it: quality of service 0 and 1.
//!
//! `packet.rs` is the one codec of both sides, the sidecar's own link and the emulator's broker. Our own, because the client crates
//! for rustls either pin a TLS stack with open advisories or bring forty crates for what are eleven packets. The link:
//! `client.rs` dials and says who it is, `session.rs` is one connection, `topic.rs` what is said on it.

pub mod client;
pub mod packet;
mod refusal;
pub mod session;
pub mod topic;
