//! The root directory of the jail: a private tmpfs, below which the shim later attaches the mounts of
//! containers, or a bind mount of one directory. Called by [`super::enter`] in its new mount namespace; never
//! changes the host's mounts.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};

use super::{Error, step};

/// The tmpfs holds only directories and mount points, which the shim creates: a few inodes per container.
const TMPFS_OPTIONS: [(&str, &str); 3] = [("size", "1m"), ("nr_inodes", "8192"), ("mode", "0755")];

/// Makes a bind mount of `shared`, or an empty tmpfs, the root and the working directory, and detaches the
/// old root.
pub fn pivot(shared: Option<&Path>) -> Result<(), Error> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    step("make all mounts private", mount_change("/", private))?;
    let new_root = match shared {
        Some(directory) => bind(directory),
        None => step("mount a tmpfs for the shared tree", tmpfs()),
    }?;
    let over_root = move_mount(&new_root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    step("attach the new root", over_root)?;
    step("enter the new root", rustix::process::fchdir(&new_root))?;
    step(
        "pivot_root (this does not work if the root is an initramfs)",
        rustix::process::pivot_root(".", "."),
    )?;
    // pivot_root(".", ".") stacks the old root on the new one, so "." is the old root now: see pivot_root(2).
    step("detach the old root", unmount(".", UnmountFlags::DETACH))?;
    step("enter the root", rustix::process::chdir("/"))
}

/// A detached tmpfs mount.
fn tmpfs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in TMPFS_OPTIONS {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    // Read-only for this process: the guest sees this tree by virtio-fs, and must not leave a FIFO or a link
    // where the shim is about to attach a mount. The shim writes through a clone of this mount without the
    // attribute; mounts that it attaches keep their own attributes.
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A detached bind mount of `directory`, with the mounts below it.
fn bind(directory: &Path) -> Result<OwnedFd, Error> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, directory, flags).map_err(|error| Error {
        step: "clone the shared directory's mount",
        reason: format!("{}: {error}", directory.display()),
    })
}
