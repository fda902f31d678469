//! Removes a container's mounts from the tree that the guest sees, and then their mount points. Called by the
//! sandbox's delete flow, and by its create flow if a creation fails half-way. The work is done by a forked
//! child, as that of [`super::move_mounts`]; see [`super::tree`] for what it trusts.
//!
//! The mounts are detached: files that the VMM still has open stay usable until the guest has forgotten them.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;

use super::Error;
use super::tree::{Tree, names, open_below};
use crate::sys;

/// Most mounts that are stacked on one mount point. A container's root file system has one for each entry of
/// Create's rootfs mounts.
const MAX_STACK: usize = 1024;

/// Removes the mounts at `mount_points`, which are relative to the tree's root, in the mount namespace of the
/// process behind `vmm` (a pidfd), and then the directories that are empty without them. What does not exist
/// is skipped.
///
/// # Errors
/// As [`super::move_into_vmm`]; whatever can be removed is removed all the same.
pub async fn remove_from_vmm(vmm: BorrowedFd<'_>, mount_points: &[PathBuf]) -> Result<(), Error> {
    sys::in_child(|| {
        let tree = Tree::enter(vmm)?;
        let mut failed = Vec::new();
        for point in mount_points {
            let removed = names(point).and_then(|_| tree.remove(point).map_err(|error| at(point, &error)));
            failed.extend(removed.err());
        }
        for directory in parents(mount_points) {
            failed.extend(
                tree.remove_name(directory, AtFlags::REMOVEDIR)
                    .map_err(|error| at(directory, &error))
                    .err(),
            );
        }
        if failed.is_empty() {
            Ok(())
        } else {
            Err(failed.join("; "))
        }
    })
    .await
    .map_err(Error::Child)?
    .map_err(Error::RemoveMount)
}

fn at(path: &Path, error: &io::Error) -> String {
    format!("/{}: {error}", path.display())
}

/// The directories above `mount_points`, each before the one above it.
fn parents(mount_points: &[PathBuf]) -> Vec<&Path> {
    let above = mount_points.iter().flat_map(|point| point.ancestors().skip(1));
    let parents: BTreeSet<&Path> = above.filter(|path| !path.as_os_str().is_empty()).collect();
    // A directory sorts before what is in it.
    parents.into_iter().rev().collect()
}

impl Tree {
    /// Detaches all mounts at `point` and removes it.
    fn remove(&self, point: &Path) -> io::Result<()> {
        let Some((directory, name)) = point.parent().zip(point.file_name()) else {
            return Ok(());
        };
        let directory = match open_below(&self.root, directory, OFlags::DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            directory => directory?,
        };
        // By its name in this directory: umount2(2) follows no link in it.
        rustix::process::fchdir(&directory)?;
        for _ in 0..MAX_STACK {
            match umount2(name, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                // No mount is left, or there never was a mount point.
                Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
                Err(error) => return Err(error.into()),
            }
        }
        match self.remove_name(point, AtFlags::empty()) {
            Err(error) if error.raw_os_error() == Some(libc::EISDIR) => {
                self.remove_name(point, AtFlags::REMOVEDIR)
            }
            removed => removed,
        }
    }

    /// Removes a file, or with REMOVEDIR an empty directory.
    fn remove_name(&self, path: &Path, flags: AtFlags) -> io::Result<()> {
        let Some((directory, name)) = path.parent().zip(path.file_name()) else {
            return Ok(());
        };
        let directory = if directory.as_os_str().is_empty() {
            self.writable.try_clone()
        } else {
            open_below(&self.writable, directory, OFlags::DIRECTORY)
        };
        let removed = directory
            .and_then(|directory| rustix::fs::unlinkat(&directory, name, flags).map_err(io::Error::from));
        match removed {
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
            removed => removed,
        }
    }
}

#[cfg(test)]
mod tests;
