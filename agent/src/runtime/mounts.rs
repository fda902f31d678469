//! A container's mounts (`mounts`), made in its mount namespace and below its root directory: each is
//! complete before it is attached. Called by the child that becomes the init; the destinations have no links
//! any more, see `super::destinations`.

use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, OFlags, fstat};
use rustix::io;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::copy_up;
use super::mount_attributes::Change;
use super::options::Options;
use super::tree::Tree;
use crate::spec::MountPropagation;

/// Where the devices are.
pub const DEV: &str = "/dev";

/// Makes `mount` in `tree`. Returns it if it is to be read-only, but can't be yet.
///
/// # Errors
/// The mount's destination, the step that failed, and why.
pub fn make(tree: &Tree, mount: &Mount) -> Result<Option<ReadOnly>, String> {
    let destination = mount.destination();
    let mut options = options_of(mount);
    let made = if is_bind(mount) {
        bind(tree, mount, &options).map(|()| None)
    } else {
        // Devices, mount points of other mounts and the working directory may be made in it.
        let takes_files = mount.typ().as_deref() == Some("tmpfs") || destination == Path::new(DEV);
        let is_read_only = takes_files && options.take_read_only();
        new_file_system(tree, mount, &options).map(|made| is_read_only.then_some(made))
    };
    let made = made.map_err(|reason| format!("mounts: {}: {reason}", destination.display()))?;
    let read_only = |mount| ReadOnly {
        mount,
        destination: destination.clone(),
    };
    Ok(made.map(read_only))
}

/// A new mount that becomes read-only once the container's files are complete.
pub struct ReadOnly {
    mount: OwnedFd,
    destination: PathBuf,
}

impl ReadOnly {
    /// Makes it read-only.
    ///
    /// # Errors
    /// The mount's destination, and why.
    pub fn seal(&self) -> Result<(), String> {
        Change::set(libc::MOUNT_ATTR_RDONLY)
            .apply(self.mount.as_fd(), false)
            .map_err(|error| format!("mounts: making {} read-only: {error}", self.destination.display()))
    }
}

impl AsRawFd for ReadOnly {
    fn as_raw_fd(&self) -> RawFd {
        self.mount.as_raw_fd()
    }
}

/// Whether `mounts` have a directory that exists at /dev, as the last one there and by the words of the spec:
/// where a link of the image leads does not matter.
pub fn bind_dev(mounts: &[Mount]) -> bool {
    let mut mounts = mounts.iter();
    let last = mounts.rfind(|mount| mount.destination() == Path::new(DEV));
    last.is_some_and(is_bind)
}

fn options_of(mount: &Mount) -> Options {
    Options::parse(mount.options().iter().flatten().map(String::as_str))
}

/// Whether `mount` shows files that exist.
pub fn is_bind(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind") || options.any(|option| option == "bind" || option == "rbind")
}

fn bind(tree: &Tree, mount: &Mount, options: &Options) -> Result<(), String> {
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if mount.options().iter().flatten().any(|option| option == "rbind") {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let copy =
        open_tree(CWD, source, flags).map_err(|error| format!("source {}: {error}", source.display()))?;
    let kind = fstat(&copy).map(|stat| FileType::from_raw_mode(stat.st_mode));
    let target = match kind {
        Ok(FileType::Directory) => tree.make_directories(mount.destination()),
        Ok(_) => tree.make_file(mount.destination()),
        Err(error) => Err(error),
    };
    let target = target.map_err(|error| format!("making the mount point: {error}"))?;
    let set = |error: std::io::Error| format!("setting its options: {error}");
    options.of_copy().apply(copy.as_fd(), false).map_err(set)?;
    options.below_copy().apply(copy.as_fd(), true).map_err(set)?;
    attach(&copy, &target).map_err(|error| format!("attaching it: {error}"))
}

fn new_file_system(tree: &Tree, mount: &Mount, options: &Options) -> Result<OwnedFd, String> {
    let kind = match mount.typ().as_deref() {
        // The guest has version 2 only.
        Some("cgroup") => "cgroup2",
        kind => kind.unwrap_or_default(),
    };
    let target = find_target(tree, mount, kind)?;
    let source = mount.source().as_deref().unwrap_or(Path::new(kind));
    let made = FileSystem {
        kind,
        source,
        parameters: &options.parameters,
        attributes: options.of_new_mount(),
    }
    .make()?;
    if kind == "tmpfs" && options.copies_up {
        copy_up::copy(target.as_fd(), made.as_fd()).map_err(|reason| format!("tmpcopyup: {reason}"))?;
    }
    options
        .below
        .apply(made.as_fd(), true)
        .map_err(|error| format!("setting its options: {error}"))?;
    attach(&made, &target).map_err(|error| format!("attaching it: {error}"))?;
    Ok(made)
}

/// Opens the mount point of a new file system, which is made if it is missing.
fn find_target(tree: &Tree, mount: &Mount, kind: &str) -> Result<OwnedFd, String> {
    let destination = mount.destination();
    if kind == "proc" || kind == "sysfs" {
        if destination.starts_with("/proc") && (kind == "sysfs" || destination != Path::new("/proc")) {
            return Err(format!("a file system {kind} cannot be mounted there"));
        }
        // As runc does: a link in the image must not decide where they are.
        if let Ok(found) = tree.find(destination, OFlags::NOFOLLOW)
            && let Ok(stat) = fstat(&found)
        {
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                return Ok(found);
            }
            return Err(format!(
                "a file system {kind} must be mounted on an ordinary directory"
            ));
        }
    }
    let target = tree.make_directories(destination);
    target.map_err(|error| format!("making the mount point: {error}"))
}

/// A new instance of a file system.
pub struct FileSystem<'a> {
    /// Such as "tmpfs".
    pub kind: &'a str,
    /// What mountinfo shows as its source.
    pub source: &'a Path,
    /// Each `NAME` or `NAME=VALUE`.
    pub parameters: &'a [String],
    /// MOUNT_ATTR_* of linux/mount.h.
    pub attributes: u64,
}

impl FileSystem<'_> {
    /// Mounts it, attached nowhere.
    ///
    /// # Errors
    /// The parameter or step that failed, and why.
    pub fn make(&self) -> Result<OwnedFd, String> {
        let kind = self.kind;
        let failed = |error: io::Errno| format!("mounting {kind}: {error}");
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed)?;
        fsconfig_set_string(&context, "source", self.source).map_err(failed)?;
        for parameter in self.parameters.iter().filter(|text| !text.is_empty()) {
            let set = match parameter.split_once('=') {
                Some((name, value)) => fsconfig_set_string(&context, name, value),
                None => fsconfig_set_flag(&context, parameter.as_str()),
            };
            set.map_err(|error| format!("mounting {kind} with {parameter:?}: {error}"))?;
        }
        fsconfig_create(&context).map_err(failed)?;
        let attributes = u32::try_from(self.attributes).unwrap_or_default();
        let attributes = MountAttrFlags::from_bits_retain(attributes);
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed)
    }
}

/// Attaches `mount`, which is attached nowhere, to the file that is open as `target`.
pub fn attach(mount: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

/// Sets propagation types, once all mounts exist: a mount below a shared one would become shared, too.
///
/// # Errors
/// The mount's destination, and why.
pub fn propagate(tree: &Tree, mounts: &[MountPropagation]) -> Result<(), String> {
    for mount in mounts {
        for option in &mount.options {
            let set = tree
                .find(&mount.destination, OFlags::empty())
                .map_err(std::io::Error::from)
                .and_then(|found| set_propagation(&found, option));
            set.map_err(|error| format!("mounts: making {} {option}: {error}", mount.destination.display()))?;
        }
    }
    Ok(())
}

/// Sets the propagation type `option`, such as "rslave", of the mount at `mount`.
pub fn set_propagation(mount: &OwnedFd, option: &str) -> std::io::Result<()> {
    let (plain, below) = match option.strip_prefix('r') {
        Some(plain) => (plain, true),
        None => (option, false),
    };
    let kind = match plain {
        "private" => libc::MS_PRIVATE,
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return Err(std::io::ErrorKind::InvalidInput.into()),
    };
    Change::propagation(kind).apply(mount.as_fd(), below)
}
