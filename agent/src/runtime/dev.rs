//! What every container has in /dev: device nodes, and links to /proc/self/fd. A directory that the spec
//! binds there is left as it is, and so is a mount on one of the names, as with runc. Called by the child
//! that becomes the init.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxNamespaceType, Spec};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, chownat, fstat, mknodat, symlinkat, unlinkat};
use rustix::io::{Errno, Result};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mounts::{self, DEV};
use super::tree::Tree;
use crate::child::{Failure, at};
use crate::spec::has_namespace;

/// Name, major and minor number of the devices that every container has.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("tty", 5, 0),
    ("urandom", 1, 9),
    ("random", 1, 8),
];
/// Links, each with its target.
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
/// The target of /dev/core, if the kernel has it.
const KCORE: &str = "/proc/kcore";
/// Mode of a device whose spec has none.
const MODE: u32 = 0o666;

/// A device node to make.
struct Node {
    path: PathBuf,
    kind: FileType,
    number: u64,
    mode: u32,
    owner: (Option<u32>, Option<u32>),
}

/// Makes devices and links below /dev of `tree`.
pub fn fill(tree: &Tree, spec: &Spec) -> std::result::Result<(), Failure> {
    let directory = tree.make_directories(Path::new(DEV)).map_err(at(DEV))?;
    for (name, target) in LINKS {
        link(&directory, name, target).map_err(at(name))?;
    }
    if Path::new(KCORE).exists() {
        link(&directory, "core", KCORE).map_err(at("core"))?;
    }
    // In a user namespace, device nodes can't be made.
    let is_bound = has_namespace(spec, LinuxNamespaceType::User);
    // The modes of the spec apply as they are.
    let umask = rustix::process::umask(Mode::empty());
    let made = nodes(spec).iter().try_for_each(|node| {
        let made = if is_bound && node.kind != FileType::Fifo {
            node.bind(tree)
        } else {
            node.make(tree, &directory)
        };
        made.map_err(|error| Failure::Step(format!("linux.devices: {}: {error}", node.path.display())))
    });
    rustix::process::umask(umask);
    made?;
    link_ptmx(&directory).map_err(at("/dev/ptmx"))
}

fn link(directory: &OwnedFd, name: &str, target: &str) -> Result<()> {
    match symlinkat(target, directory, name) {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

/// Makes /dev/ptmx a link to that of the container's own devpts.
fn link_ptmx(directory: &OwnedFd) -> Result<()> {
    let name = "ptmx";
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => symlinkat("pts/ptmx", directory, name),
        Err(error) => Err(error),
    }
}

/// The devices of `spec`, and those that every container has and `spec` does not redefine.
fn nodes(spec: &Spec) -> Vec<Node> {
    let linux = spec.linux().as_ref();
    let named = linux
        .and_then(|linux| linux.devices().as_deref())
        .unwrap_or_default();
    let default = DEVICES.iter().map(|(name, major, minor)| Node {
        path: Path::new(DEV).join(name),
        kind: FileType::CharacterDevice,
        number: libc::makedev(*major, *minor),
        mode: MODE,
        owner: (None, None),
    });
    let is_new = |node: &Node| !named.iter().any(|device| *device.path() == node.path);
    named
        .iter()
        .map(Node::new)
        .chain(default.filter(is_new))
        .collect()
}

impl Node {
    fn new(device: &LinuxDevice) -> Self {
        let kind = match device.typ() {
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A | LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        };
        let number = |number: i64| u32::try_from(number).unwrap_or_default();
        Self {
            path: device.path().clone(),
            kind,
            number: libc::makedev(number(device.major()), number(device.minor())),
            mode: device.file_mode().unwrap_or(MODE),
            owner: (device.uid(), device.gid()),
        }
    }

    /// Makes it; `dev` is the directory /dev.
    fn make(&self, tree: &Tree, dev: &OwnedFd) -> Result<()> {
        let elsewhere;
        let (parent, name) = match self.path.file_name() {
            Some(name) if self.path.parent() == Some(Path::new(DEV)) => (dev, name),
            _ => {
                let (parent, name) = tree.parent_of(&self.path)?;
                elsewhere = parent;
                (&elsewhere, name)
            }
        };
        match mknodat(
            parent,
            name,
            self.kind,
            Mode::from_raw_mode(self.mode),
            self.number,
        ) {
            // A mount of the spec, or a file of the image.
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.change_owner(parent, name),
        }
    }

    fn change_owner(&self, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        if self.owner == (None, None) {
            return Ok(());
        }
        let (uid, gid) = self.owner;
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Binds the guest's device of the same path.
    fn bind(&self, tree: &Tree) -> Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let copy = open_tree(CWD, &self.path, flags)?;
        let stat = fstat(&copy)?;
        if FileType::from_raw_mode(stat.st_mode) != self.kind || stat.st_rdev != self.number {
            // The guest has another device there, as disks have other numbers in it than on the host.
            return Err(Errno::NODEV);
        }
        let target = tree.make_file(&self.path)?;
        mounts::attach(&copy, &target)
    }
}

/// Binds the terminal whose slave is `slave` on /dev/console of the container, whose root is the caller's.
pub fn bind_console(slave: &OwnedFd) -> std::result::Result<(), Failure> {
    let step = "/dev/console";
    let tree = Tree::open(Path::new("/")).map_err(at(step))?;
    let target = tree.make_file(Path::new(step)).map_err(at(step))?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = open_tree(slave.as_fd(), "", flags).map_err(at(step))?;
    mounts::attach(&copy, &target).map_err(at(step))
}
