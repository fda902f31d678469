//! Moves a container's detached mounts into the tree that the guest sees, the root of the VMM's mount
//! namespace. Called by the sandbox's create flow. The work is done by a forked child, because a process
//! can't leave a mount namespace again.
//!
//! A mount point that exists must have the expected type.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};

use super::tree::{Tree, names, open_below};
use super::{Error, Placement};
use crate::sys;

/// Moves `placements` into the mount namespace of the process behind `vmm` (a pidfd).
///
/// # Errors
/// [`Error::Child`] if the child could not be forked or did not finish in time; [`Error::MoveMount`] with the
/// path that failed.
pub async fn move_into_vmm(vmm: BorrowedFd<'_>, placements: &[Placement]) -> Result<(), Error> {
    sys::in_child(|| {
        let tree = Tree::enter(vmm)?;
        placements.iter().try_for_each(|placement| tree.mount(placement))
    })
    .await
    .map_err(Error::Child)?
    .map_err(Error::MoveMount)
}

impl Tree {
    /// Makes the mount point of `placement` and stacks its mounts on it.
    fn mount(&self, placement: &Placement) -> Result<(), String> {
        self.make_mount_point(placement)?;
        self.stack(placement)
            .map_err(|error| format!("/{}: {error}", placement.target.display()))
    }

    fn make_mount_point(&self, placement: &Placement) -> Result<(), String> {
        let names = names(&placement.target)?;
        let mut path = PathBuf::from("/");
        let mut directory = self.writable.try_clone().map_err(|error| format!("/: {error}"))?;
        for (index, name) in names.iter().enumerate() {
            path.push(name);
            let at = |error: io::Error| format!("{}: {error}", path.display());
            if placement.is_directory || index + 1 < names.len() {
                directory = make_directory(&directory, name).map_err(at)?;
            } else {
                make_file(&directory, name).map_err(at)?;
            }
        }
        Ok(())
    }

    /// Each mount covers the one before it.
    fn stack(&self, placement: &Placement) -> io::Result<()> {
        let target = open_below(&self.root, &placement.target, OFlags::empty())?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        for mount in &placement.mounts {
            move_mount(mount, "", &target, "", flags)?;
        }
        Ok(())
    }
}

/// Makes the directory `name` in `parent`, if it does not exist, and opens it.
fn make_directory(parent: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(&parent, name, Mode::from(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => Err(unexpected("exists and is not a directory")),
        opened => Ok(opened?),
    }
}

/// Makes the empty regular file `name` in `parent`, if it does not exist.
fn make_file(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    // mknod(2) opens nothing, whatever is there.
    match rustix::fs::mknodat(&parent, name, FileType::RegularFile, Mode::from(0o644), 0) {
        Ok(()) => return Ok(()),
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0 {
        Ok(())
    } else {
        Err(unexpected("exists and is not an empty regular file"))
    }
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, what)
}

#[cfg(test)]
mod tests;
