//! virtio-fs (virtio 1.2, 5.11): the pod's shared tree, served in this process by virtiofsd's library, which
//! copies between files and guest memory directly. Created by `machine/virtio_devices.rs`, served by one
//! worker.
//!
//! The tree is the root of the VMM's mount namespace after the jail is closed; the shim attaches the
//! containers' mounts below it while the guest runs. Creation has two phases: [`Prepared::before_jail`] opens
//! /proc/self/fd, which does not exist in the jail; [`spawn`] does the rest afterwards. [`subtree`] decides
//! what the guest may cache, [`checks`] and [`request`] what it may send; [`memory_view`] is guest memory in
//! the library's type.
//!
//! What the worker needs of the jail (the tables are in `crate::jail`):
//! - capabilities CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETUID, SETGID, MKNOD, SETFCAP: files get the owner,
//!   mode, type and attributes that the guest's kernel has already permitted. Not SYS_ADMIN: extended
//!   attributes `trusted.*` and `security.*` other than file capabilities can't be set, as in a container
//!   without SYS_ADMIN;
//! - a separate working directory and umask (CLONE_FS), since both change for some requests;
//! - system calls on files by descriptor, on credentials of this thread, and capget/capset.
//!
//! Open files: each inode that the guest has cached and each file that it has open is a descriptor of this
//! process. A guest that exceeds RLIMIT_NOFILE less [`RESERVED_FILES`] gets ENFILE; the rest of the VMM is
//! not affected.

mod checks;
mod counts;
mod handles;
mod library;
mod memory_view;
mod operations;
mod privileges;
mod request;
mod streams;
mod subtree;
#[cfg(test)]
mod tests;
mod tree;

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use nix::sys::resource::{Resource, getrlimit};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtiofsd::server::Server;

use super::worker::{ActiveDevice, DataPath, Fault, Notify};
use super::{Device, DeviceError, Env, Spec};
use crate::jail::calls::fs::PROFILE;
pub use counts::counts;
use memory_view::MemoryView;
use tree::Tree;

/// Descriptors of RLIMIT_NOFILE that the guest's files may not use: they are for vsock streams and the VMM
/// itself.
pub const RESERVED_FILES: u64 = 512;

const NAME: &str = "fs";
/// The library opens links in this directory to turn an O_PATH descriptor into one with access to data.
const PROC_SELF_FD: &str = "/proc/self/fd";
/// The high-priority queue and one request queue (virtio 1.2, 5.11.2). 512 descriptors hold a request of a
/// MiB.
const QUEUE_SIZES: &[u16] = &[128, 512];
/// Bytes of the tag in the configuration space (virtio 1.2, 5.11.4).
const TAG_BYTES: usize = 36;

/// What is opened before the jail is closed.
#[derive(Debug)]
pub struct Prepared {
    proc_self_fd: File,
}

impl Prepared {
    /// Opens /proc/self/fd as a detached clone of its mount. A plain descriptor would still belong to the
    /// host's mount namespace after the jail is closed, so `openat(fd, "../../../etc/shadow")` would open the
    /// host's file. The clone has no parent mount: `..` at its root is the root itself.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN; ENOENT if /proc is not mounted.
    pub fn before_jail() -> std::io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let proc_self_fd = open_tree(CWD, PROC_SELF_FD, flags)?;
        Ok(Self {
            proc_self_fd: proc_self_fd.into(),
        })
    }

    /// Opens /proc/self/fd as a plain descriptor, which needs no privilege. For a process that stays outside
    /// of the jail; [`crate::jail::enter`] refuses this descriptor.
    ///
    /// # Errors
    /// ENOENT if /proc is not mounted.
    pub fn without_jail() -> std::io::Result<Self> {
        let proc_self_fd = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_DIRECTORY)
            .open(PROC_SELF_FD)?;
        Ok(Self { proc_self_fd })
    }
}

/// The configuration of the device.
#[derive(Debug)]
pub struct Config {
    /// The tag by which the guest mounts the tree, 1 to 36 bytes.
    pub tag: String,
    /// The directory to share, as a path of this process after it has entered the jail: `/` in the jail.
    pub root: PathBuf,
    /// See [`Prepared`].
    pub prepared: Prepared,
}

/// Creates the device, with two queues, and spawns its worker.
///
/// # Errors
/// [`DeviceError`] if the tag has a wrong length, the root can't be opened, or the worker can't be spawned.
pub fn spawn(config: Config, env: &Env) -> Result<Device, DeviceError> {
    let spec = Spec {
        name: NAME,
        device_type: VIRTIO_ID_FS,
        queue_sizes: QUEUE_SIZES.to_vec(),
        features: 0,
        config: config_space(&config.tag).map_err(DeviceError::at(NAME, "check the tag"))?,
        config_writable: 0..0,
        profile: &PROFILE,
    };
    Device::spawn(spec, env, move || FsDataPath::new(config))
}

/// The configuration space: the tag, padded with zeros, and the number of request queues, 1.
fn config_space(tag: &str) -> Result<Vec<u8>, String> {
    if tag.is_empty() || tag.len() > TAG_BYTES {
        return Err(format!("expected 1 to {TAG_BYTES} bytes, got {tag:?}"));
    }
    let padded = tag.bytes().chain(std::iter::repeat(0)).take(TAG_BYTES);
    Ok(padded.chain(1_u32.to_le_bytes()).collect())
}

/// Serves requests one after the other: a host file system that hangs blocks all files of this guest.
struct FsDataPath {
    server: Server<Tree>,
    /// Guest memory of the current activation.
    view: Option<MemoryView>,
}

impl FsDataPath {
    fn new(config: Config) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let (open_files, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let tree = Tree::new(
            config.root,
            config.prepared.proc_self_fd,
            open_files.saturating_sub(RESERVED_FILES),
        )?;
        Ok(Self {
            server: Server::new(tree),
            view: None,
        })
    }
}

impl DataPath for FsDataPath {
    fn start(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        self.view = Some(MemoryView::of(&active.memory).map_err(Fault::Memory)?);
        Ok(())
    }

    fn on_queue(&mut self, index: u16, active: &mut ActiveDevice) -> Result<(), Fault> {
        let Self {
            server,
            view: Some(view),
        } = self
        else {
            return Ok(());
        };
        active.serve(index, Notify::Each, |_, chain| {
            request::serve(server, view, &chain)
        })
    }

    fn on_memory(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        self.start(active)
    }

    /// Inodes and open files are kept until the next driver's INIT request, which drops them.
    fn stop(&mut self, _active: &mut ActiveDevice) {
        self.view = None;
    }
}
