//! The code generated from `proto/control.proto`, and its descriptor for reflection.

#![expect(missing_docs, reason = "generated; the contract's comments are in proto/control.proto")]

tonic::include_proto!("quorate.v1");

/// The compiled contract, as reflection serves it.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/control_descriptor.bin"));
