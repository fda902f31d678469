//! Host mounts for a container: created detached (no process on the host sees them), then moved into the
//! VMM's mount namespace, where they are part of the tree that the guest sees. They are removed when the
//! container is deleted; the kernel removes what is left with that namespace, when the VMM exits. Called by
//! the sandbox's create flow with the plan that `bundle` has made, and by its delete flow; never opens a file
//! of the guest.

mod detached;
pub mod erofs_layers;
mod id_map;
mod move_mounts;
mod options;
mod remove_mounts;
mod restrictions;
pub mod sources;
mod staged;
#[cfg(test)]
mod stand_in;
mod tree;
pub mod writable_layer;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nacre_protocol::guest;

use crate::mount::{Extent, HostMount, LowerLayers, Rootfs};

/// Why a container's mounts could not be made or moved.
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
    /// The forked child did not finish, or could not be forked.
    #[error("mounting in a child process: {0}")]
    Child(#[source] std::io::Error),
    #[error("{0}")]
    Staged(String),
    #[error("in the VMM's mount namespace: {0}")]
    MoveMount(String),
    #[error("removing mounts in the VMM's mount namespace: {0}")]
    RemoveMount(String),
}

/// A stack of detached mounts and its mount point in the tree that the guest sees.
#[derive(Debug)]
pub struct Placement {
    /// The mount point, relative to the tree's root, such as `c1/mounts/0`.
    pub target: PathBuf,
    /// The type of mount point to make: a directory, or an empty file.
    pub is_directory: bool,
    /// The mounts, bottom first.
    pub mounts: Vec<OwnedFd>,
}

/// The detached mounts of a container.
#[derive(Debug)]
pub struct Detached {
    /// Where each is to be.
    pub placements: Vec<Placement>,
    /// What they do not allow, by their paths in the tree that the guest sees.
    pub restrictions: Vec<Restriction>,
}

/// Makes the detached mounts of container `id`: its root file system first, then its bind mounts. `seen` are the host's.
///
/// # Errors
/// [`Error`] with the mount that failed.
pub async fn detach(
    id: &str,
    rootfs: &Rootfs,
    mounts: &[HostMount],
    seen: &Mounts,
) -> Result<Detached, Error> {
    let mut restrictions = Vec::new();
    let mut add = |target: &Path, of: Vec<Restriction>| {
        let placed = |one: Restriction| Restriction {
            path: target.join(one.path),
            ..one
        };
        restrictions.extend(of.into_iter().map(placed));
    };
    let (root, of_root) = root_mounts(rootfs, seen).await?;
    let root = root_mount_point(id, rootfs).map(|target| {
        add(&target, of_root);
        Placement {
            target,
            is_directory: true,
            mounts: root,
        }
    });
    let mut placements: Vec<Placement> = root.into_iter().collect();
    let mut namespaces = id_map::Namespaces::default();
    for mount in mounts {
        let bound = detached::bind(&mount.source, mount.extent, Some(seen))?;
        add(Path::new(&mount.mount_point(id)), bound.restrictions);
        if let Some((map, recursive)) = &mount.id_map {
            let ids = namespaces.get(map).await?;
            detached::map_ids(&bound.mount, mount.source.display(), ids, *recursive)?;
        }
        placements.push(Placement {
            target: mount.mount_point(id).into(),
            is_directory: bound.is_directory,
            mounts: vec![bound.mount],
        });
    }
    Ok(Detached {
        placements,
        restrictions,
    })
}

/// The detached mounts of a root file system, bottom first; none if the guest mounts all of it. And what a directory
/// of the host does not allow.
async fn root_mounts(rootfs: &Rootfs, seen: &Mounts) -> Result<(Vec<OwnedFd>, Vec<Restriction>), Error> {
    let mut restrictions = Vec::new();
    let mounts = match rootfs {
        Rootfs::Disk(_) => Vec::new(),
        Rootfs::Overlay(overlay) => match &overlay.lower {
            LowerLayers::Shared(lower) => vec![detached::mount(0, lower).await?],
            LowerLayers::Disks(_) => Vec::new(),
        },
        Rootfs::Directory(path) => {
            let extent = Extent {
                recursive: true,
                read_only: false,
            };
            let bound = detached::bind(path, extent, Some(seen))?;
            restrictions = bound.restrictions;
            vec![bound.mount]
        }
        Rootfs::Mounts(mounts) => {
            let mut stack = Vec::new();
            for (index, mount) in mounts.iter().enumerate() {
                stack.push(detached::mount(index, mount).await?);
            }
            stack
        }
    };
    Ok((mounts, restrictions))
}

/// A detached mount of the directory `source`, of which no process on the host knows.
///
/// # Errors
/// [`Error`], also if it is not a directory.
pub fn clone_directory(source: &Path, extent: Extent) -> Result<OwnedFd, Error> {
    let bound = detached::bind(source, extent, None)?;
    if bound.is_directory {
        return Ok(bound.mount);
    }
    Err(Error::Path {
        what: source.display().to_string(),
        source: std::io::ErrorKind::NotADirectory.into(),
    })
}

/// The mount point in the directory of container `id` of what the host mounts of its root file system; None if the
/// guest mounts all of it.
fn root_mount_point(id: &str, rootfs: &Rootfs) -> Option<PathBuf> {
    let name = match rootfs {
        Rootfs::Disk(_) => return None,
        Rootfs::Overlay(overlay) => match overlay.lower {
            LowerLayers::Shared(_) => guest::LOWER_DIR,
            LowerLayers::Disks(_) => return None,
        },
        Rootfs::Directory(_) | Rootfs::Mounts(_) => guest::ROOTFS_DIR,
    };
    Some(Path::new(id).join(name))
}

/// The mount points that [`detach`] has for a container, but those of shared volumes.
pub fn mount_points(id: &str, rootfs: &Rootfs, mounts: &[HostMount]) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = root_mount_point(id, rootfs).into_iter().collect();
    let own = mounts.iter().filter(|mount| mount.volume.is_none());
    points.extend(own.map(|mount| PathBuf::from(mount.mount_point(id))));
    points
}

/// The size for the pod's /dev/shm, bytes: that of the tmpfs that the host has for it.
pub fn shm_size(host: &Path) -> u64 {
    /// What CRI and Docker give a container.
    const USUAL: u64 = 64 << 20;
    match rustix::fs::statfs(host) {
        Ok(stat) if stat.f_type == libc::TMPFS_MAGIC => {
            let size = u64::try_from(stat.f_bsize).unwrap_or_default();
            // 0 blocks: a tmpfs without a limit.
            Some(stat.f_blocks.saturating_mul(size))
                .filter(|size| *size > 0)
                .unwrap_or(USUAL)
        }
        Ok(_) | Err(_) => USUAL,
    }
}

pub use restrictions::{Mounts, Restriction};

pub use move_mounts::move_into_vmm;
pub use remove_mounts::remove_from_vmm;
