//! The root of the VMM's mount namespace, the tree that the guest sees, as a forked child of the shim works
//! on it. Used by [`super::move_mounts`] and [`super::remove_mounts`].
//!
//! The guest may have made files in that tree, so nothing found there is trusted: no symbolic link is
//! followed, no file is opened for reading or writing (opening a FIFO would block). The VMM's root mount is
//! read-only; the child makes and removes mount points through a writable clone of it, which no other process
//! sees.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use nix::sched::{CloneFlags, setns};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::sys::{self, Attributes};

/// The root of the VMM's mount namespace, twice.
pub struct Tree {
    /// As the VMM and the guest see it, with all mounts.
    pub root: OwnedFd,
    /// A detached, writable clone without the mounts below it: mount points are made and removed here.
    pub writable: OwnedFd,
}

impl Tree {
    /// Enters the mount namespace of the process behind `vmm` (a pidfd). Only for a forked child: a process
    /// can't leave a mount namespace again.
    ///
    /// # Errors
    /// The step that failed.
    pub fn enter(vmm: BorrowedFd<'_>) -> Result<Self, String> {
        let host = root_identity()?;
        setns(vmm, CloneFlags::CLONE_NEWNS).map_err(|error| format!("setns: {error}"))?;
        // Otherwise the work would be done on the host's mounts.
        if root_identity()? == host {
            return Err("the VMM has not left the host's mount namespace".to_owned());
        }
        Self::open().map_err(|error| format!("/: {error}"))
    }

    fn open() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty())?;
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let writable = open_tree(CWD, "/", clone)?;
        let attributes = Attributes {
            clear: libc::MOUNT_ATTR_RDONLY,
            ..Attributes::default()
        };
        sys::set_attributes(&writable, attributes)?;
        Ok(Self { root, writable })
    }
}

/// Opens `path` below `directory` without following a link. O_PATH opens no FIFO and no device. Mounts may be
/// crossed.
///
/// # Errors
/// As openat2(2).
pub fn open_below(directory: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat2(
        directory,
        path,
        flags | OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )?)
}

/// The names in a plain relative path.
///
/// # Errors
/// If it is none.
pub fn names(path: &Path) -> Result<Vec<&OsStr>, String> {
    let name = |component| match component {
        Component::Normal(name) => Ok(name),
        Component::RootDir | Component::CurDir | Component::ParentDir | Component::Prefix(_) => {
            Err(format!("not a plain relative path: {path:?}"))
        }
    };
    path.components().map(name).collect()
}

/// Device and inode of "/".
fn root_identity() -> Result<(u64, u64), String> {
    let root = rustix::fs::stat("/").map_err(|error| format!("stat of /: {error}"))?;
    Ok((root.st_dev, root.st_ino))
}
