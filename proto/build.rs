//! Compiles the two contracts beside this file with protox, so that no machine needs a system `protoc`.

use std::{env, error::Error, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let files = protox::compile(["proto/control.proto", "proto/peer.proto"], ["proto"])?;
    let control = protox::compile(["proto/control.proto"], ["proto"])?;
    // Server reflection shows people's contract only; the members' one is private.
    std::fs::write(out.join("control_descriptor.bin"), control.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
