//! `-v` and `-info`: name, version and build of this program, and what it supports of the OCI specification.
//! From 1.7 containerd passes its runtime options to `-info` on standard input and reads a
//! `containerd.types.RuntimeInfo` from standard output. Nacre has no such options, so the input is not read.

use std::io::Write as _;

use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::features;

/// The runtime's name in containerd's configuration.
const NAME: &str = "io.containerd.nacre.v2";

/// Prints version and build id as text.
pub fn version() -> anyhow::Result<()> {
    println!("containerd-shim-nacre-v2:");
    println!("  Version:  {}", env!("CARGO_PKG_VERSION"));
    println!("  Build:    {}", nacre_protocol::BUILD_ID);
    Ok(())
}

/// Prints the `RuntimeInfo`, encoded.
pub fn info() -> anyhow::Result<()> {
    let version = RuntimeVersion {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: nacre_protocol::BUILD_ID.to_owned(),
        ..Default::default()
    };
    let features = Any {
        type_url: features::TYPE.to_owned(),
        value: features::features().to_string().into_bytes(),
        ..Default::default()
    };
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: Some(version).into(),
        features: Some(features).into(),
        ..Default::default()
    };
    std::io::stdout().write_all(&info.write_to_bytes()?)?;
    Ok(())
}
