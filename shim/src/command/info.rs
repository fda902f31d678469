//! `-v` and `-info`: name, version and build of this program, and what it supports of the OCI specification.
//! From 1.7 containerd passes its runtime options to `-info` on standard input and reads a
//! `containerd.types.RuntimeInfo` from standard output. Nacre has no such options, so the input is not read.

use std::collections::HashMap;
use std::io::Write as _;

use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::{bootstrap, features};

/// The runtime's name in containerd's configuration.
const NAME: &str = "io.containerd.nacre.v2";

/// The annotation with what containerd's mount manager is to leave to the shim. Only containerd 2.2 needs it: later
/// versions are told by `start`.
const ALLOWED_MOUNTS: &str = "containerd.io/runtime-allow-mounts";

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
        annotations: HashMap::from([(ALLOWED_MOUNTS.to_owned(), allowed_mounts())]),
        ..Default::default()
    };
    std::io::stdout().write_all(&info.write_to_bytes()?)?;
    Ok(())
}

/// Types of mounts, and prefixes of types with "/*", separated by commas.
fn allowed_mounts() -> String {
    let types = bootstrap::MOUNT_TYPES.map(str::to_owned).into_iter();
    let transforms = bootstrap::MOUNT_TRANSFORMS.map(|prefix| format!("{prefix}/*"));
    types.chain(transforms).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    #[test]
    fn prefixes_of_mount_types_end_with_a_star() {
        assert_eq!(super::allowed_mounts(), "bind,overlay,erofs,format/*,mkdir/*");
    }
}
