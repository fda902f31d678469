//! A container's root file system, from a directory of the guest to the root of its mount namespace:
//! propagation, mounts, devices, pivot_root(2). Called by the child that becomes the init, in a mount
//! namespace of its own.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree,
    unmount,
};
use rustix::process::{fchdir, pivot_root};

use super::destinations::Arranged;
use super::mount_attributes::Change;
use super::mounts::ReadOnly;
use super::tree::Tree;
use super::{dev, mounts};
use crate::child::{Failure, at};
use crate::spec::{MountPropagation, normalize};

/// Mounts what `spec` asks for below its root directory. The root stays that of the guest. Returns the container's
/// root for [`enter`], and the mounts for [`make_read_only`].
pub fn prepare(
    spec: &Spec,
    arranged: &Arranged,
    propagation: &[MountPropagation],
) -> Result<(Tree, Vec<ReadOnly>), Failure> {
    let root = directory(spec)?;
    detach_from_guest(spec, &root)?;
    let tree = mount_on_itself(&root).map_err(at("root"))?;
    let mut read_only = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        read_only.extend(mounts::make(&tree, mount).map_err(Failure::Step)?);
    }
    if !arranged.binds_dev {
        dev::fill(&tree, spec)?;
    }
    if let Some(path) = &arranged.working_directory_in_mount {
        let made = tree.make_directories(path);
        made.map_err(|error| Failure::Step(format!("process.cwd: creating {}: {error}", path.display())))?;
    }
    mounts::propagate(&tree, propagation).map_err(Failure::Step)?;
    // A tmpfs on the root is the container's root from then on.
    let covers_root = |mount: &Mount| normalize(mount.destination()) == Path::new("/");
    let tree = if spec.mounts().iter().flatten().any(covers_root) {
        Tree::open(&root).map_err(at("root"))?
    } else {
        tree
    };
    Ok((tree, read_only))
}

/// Binds the directory `root` with the mounts below it to itself, as pivot_root(2) needs a mount. Its path is looked up
/// once, since each of its names is a request to the host.
fn mount_on_itself(root: &Path) -> rustix::io::Result<Tree> {
    let directory = Tree::open(root)?;
    let bound = open_tree(
        &directory,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_EMPTY_PATH,
    )?;
    let here = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&bound, "", &directory, "", here)?;
    Ok(Tree::from(bound))
}

fn directory(spec: &Spec) -> Result<PathBuf, Failure> {
    let root = spec.root().as_ref().map(|root| root.path().clone());
    root.ok_or_else(|| Failure::Field("root", "is missing".to_owned()))
}

/// The propagation type of the container's root, without the "r" of the recursive one.
fn propagation_of(spec: &Spec) -> Option<&str> {
    spec.linux().as_ref()?.rootfs_propagation().as_deref()
}

/// Sets the propagation of all mounts, so that nothing that is mounted in the container appears in the guest.
fn detach_from_guest(spec: &Spec, root: &Path) -> Result<(), Failure> {
    let step = "rootfsPropagation";
    let kind = match propagation_of(spec) {
        Some("shared") => MountPropagationFlags::SHARED,
        Some("private") => MountPropagationFlags::PRIVATE,
        _ => MountPropagationFlags::DOWNSTREAM,
    };
    mount_change("/", kind | MountPropagationFlags::REC).map_err(at(step))?;
    if kind == MountPropagationFlags::SHARED {
        // pivot_root refuses a root whose mount, or the one above, is shared.
        let parent = mount_point_of(root).map_err(at(step))?;
        mount_change(&parent, MountPropagationFlags::PRIVATE).map_err(at(step))?;
    }
    Ok(())
}

/// The mount point of the mount that `path` is in.
fn mount_point_of(path: &Path) -> rustix::io::Result<PathBuf> {
    let id_of = |path: &Path| {
        let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
        rustix::io::Result::Ok(stat.stx_mnt_id)
    };
    let id = id_of(path)?;
    let mut found = path;
    while let Some(parent) = found.parent() {
        if id_of(parent)? != id {
            break;
        }
        found = parent;
    }
    Ok(found.to_owned())
}

/// Makes `root`, which [`prepare`] has mounted for `spec`, the root of the mount namespace, and unmounts the guest's.
pub fn enter(spec: &Spec, root: &Tree) -> Result<(), Failure> {
    let step = "pivot_root";
    let old = Tree::open(Path::new("/")).map_err(at(step))?;
    fchdir(root).map_err(at(step))?;
    // With the same directory for both, the old root is stacked on the new one, and needs no mount point in
    // it.
    pivot_root(".", ".").map_err(at(step))?;
    fchdir(&old).map_err(at(step))?;
    // The unmount must not propagate to the guest.
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change(".", slave).map_err(at(step))?;
    unmount(".", UnmountFlags::DETACH).map_err(at(step))?;
    std::env::set_current_dir("/").map_err(at(step))?;
    let kind = match propagation_of(spec) {
        Some("shared") => MountPropagationFlags::SHARED,
        Some("unbindable") => MountPropagationFlags::UNBINDABLE,
        _ => return Ok(()),
    };
    mount_change("/", kind).map_err(at("rootfsPropagation"))
}

/// Makes `mounts`, and the root if `spec` asks for that, read-only. /dev has its devices and the console now.
pub fn make_read_only(spec: &Spec, mounts: &[ReadOnly]) -> Result<(), Failure> {
    mounts
        .iter()
        .try_for_each(ReadOnly::seal)
        .map_err(Failure::Step)?;
    let is_read_only = spec.root().as_ref().and_then(|root| root.readonly());
    if is_read_only != Some(true) {
        return Ok(());
    }
    let step = "root.readonly";
    let root = Tree::open(Path::new("/")).map_err(at(step))?;
    Change::set(libc::MOUNT_ATTR_RDONLY)
        .apply(root.as_fd(), false)
        .map_err(at(step))
}
