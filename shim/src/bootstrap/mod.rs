//! How containerd and `start` exchange what they know. Up to containerd 2.2: flags and environment, perhaps
//! the runtime's options on standard input, and the address as text on standard output. From 2.3: also
//! `BootstrapParams` on standard input and a `BootstrapResult` on standard output. Called by the command
//! `start`. Pure, but for [`input`].

pub mod input;

use std::path::PathBuf;

use containerd_shim_protos::protobuf::Message as _;

use crate::arguments::Arguments;
use crate::messages::{TYPES, any};
use crate::proto::bootstrap::{BootstrapParams, BootstrapResult, Extension};
use crate::proto::types::MountCapabilities;

/// The version of the Task service with which containerd does not run `start` for a container that joins a
/// sandbox of the Sandbox API.
const TASK_V3: i32 = 3;
/// The types of root file system mounts that the engine or the guest makes (`pod/src/rootfs`), so that containerd's
/// mount manager does not mount images of the snapshotter erofs on the host.
pub const MOUNT_TYPES: [&str; 3] = ["bind", "overlay", "erofs"];
/// The prefixes of types that the engine understands, as in "format/mkdir/overlay". containerd still makes and formats
/// the image of a writable layer (`mkfs/ext4`).
pub const MOUNT_TRANSFORMS: [&str; 2] = ["format", "mkdir"];

/// What containerd told `start` on standard input.
#[derive(Debug, Default, PartialEq)]
pub enum Bootstrap {
    /// Nothing that concerns this program: containerd 2.2 or older.
    #[default]
    Flags,
    /// The parameters of containerd 2.3 or newer.
    Params(Box<BootstrapParams>),
}

impl Bootstrap {
    /// Reads `input`. Older versions of containerd write the runtime's options there, which may be a valid
    /// message, too: parameters have the id and the namespace of the flags.
    pub fn parse(input: &[u8], arguments: &Arguments) -> Self {
        match BootstrapParams::parse_from_bytes(input) {
            Ok(params) if params.instance_id == arguments.id && params.namespace == arguments.namespace => {
                Self::Params(Box::new(params))
            }
            Ok(_) | Err(_) => Self::Flags,
        }
    }

    /// The directory in which the socket is to be, if containerd names one.
    pub fn socket_directory(&self) -> Option<PathBuf> {
        match self {
            Self::Flags => None,
            Self::Params(params) => params
                .socket_dir
                .as_ref()
                .filter(|directory| !directory.is_empty())
                .map(PathBuf::from),
        }
    }

    /// Whether containerd asks for lines of the level "debug".
    pub fn asks_for_debug(&self) -> bool {
        match self {
            Self::Flags => false,
            Self::Params(params) => params.log_level < 0,
        }
    }

    /// The type URLs of the runtime's options and other extensions; this program has no options.
    pub fn extensions(&self) -> impl Iterator<Item = &str> {
        let extensions = match self {
            Self::Flags => &[][..],
            Self::Params(params) => &params.extensions,
        };
        extensions
            .iter()
            .map(|extension| extension.value.type_url.as_str())
    }

    /// What `start` prints for a shim at `address`, in the form that containerd reads. The address alone stands
    /// for task.v2.
    pub fn response(&self, address: &str) -> Vec<u8> {
        match self {
            Self::Flags => address.as_bytes().to_vec(),
            Self::Params(_) => {
                let mounts = MountCapabilities {
                    types: MOUNT_TYPES.map(str::to_owned).to_vec(),
                    transforms: MOUNT_TRANSFORMS.map(str::to_owned).to_vec(),
                    ..Default::default()
                };
                let result = BootstrapResult {
                    version: TASK_V3,
                    address: address.to_owned(),
                    protocol: "ttrpc".to_owned(),
                    extensions: vec![Extension {
                        value: Some(any(TYPES, &mounts)).into(),
                        ..Default::default()
                    }],
                    ..Default::default()
                };
                // Writing to memory fails only for messages over 2 GiB.
                result.write_to_bytes().unwrap_or_default()
            }
        }
    }
}

#[cfg(test)]
mod tests;
