//! Host mounts for a container: made detached (nobody on the host sees them), then moved into the VMM's mount namespace,
//! where they are part of the tree that the guest sees and go with the VMM. Called by the sandbox's create flow with
//! what `bundle` has planned; opens nothing of the guest's.

mod detached;
mod place;
mod staged;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nacre_protocol::guest;

use crate::mount::{Extent, HostMount, Rootfs};

/// Why a container's files are not where the guest finds them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("rootfs mount {index} (type {kind:?}): {reason}")]
    Unsupported {
        index: usize,
        kind: String,
        reason: String,
    },
    #[error("{what}: {source}")]
    Path { what: String, source: std::io::Error },
    #[error("entering the VMM's mount namespace: {0}")]
    Child(#[source] std::io::Error),
    #[error("{0}")]
    Staged(String),
    #[error("in the VMM's mount namespace: {0}")]
    Place(String),
}

/// A stack of detached mounts and where it goes in the tree that the guest sees.
#[derive(Debug)]
pub struct Placement {
    /// From the tree's root, without a leading slash.
    pub target: PathBuf,
    /// Whether a directory or a file is to be covered.
    pub is_directory: bool,
    /// From the bottom up.
    pub mounts: Vec<OwnedFd>,
}

/// Makes the detached mounts of container `id`.
///
/// # Errors
/// [`Error`] with the mount.
pub fn detach(id: &str, rootfs: &Rootfs, mounts: &[HostMount]) -> Result<Vec<Placement>, Error> {
    let own = PathBuf::from(id);
    let root = match rootfs {
        Rootfs::Directory(path) => vec![
            detached::bind(
                path,
                Extent {
                    recursive: true,
                    read_only: false,
                },
            )?
            .mount,
        ],
        Rootfs::Mounts(mounts) => mounts
            .iter()
            .enumerate()
            .map(|(index, mount)| detached::mount(index, mount))
            .collect::<Result<_, _>>()?,
    };
    let mut placements = vec![Placement {
        target: own.join(guest::ROOTFS_DIR),
        is_directory: true,
        mounts: root,
    }];
    for mount in mounts {
        let bound = detached::bind(&mount.source, mount.extent)?;
        placements.push(Placement {
            target: own.join(guest::MOUNTS_DIR).join(mount.index.to_string()),
            is_directory: bound.is_directory,
            mounts: vec![bound.mount],
        });
    }
    Ok(placements)
}

pub use place::place;
