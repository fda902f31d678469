//! virtio-fs (virtio 1.2, 5.11): the pod's shared tree, served in this process through virtiofsd's library, straight
//! between files and guest memory. Made by the VM's device list, served on one worker of its own.
//!
//! The tree is the root of the VMM's mount namespace after the jail is closed; containers' mounts are moved into it
//! while the guest runs. Two phases: [`Prepared::before_jail`] opens /proc/self/fd, which the jail has not;
//! [`Fs::new`] afterwards does the rest. What the guest may cache is decided in [`place`], what it may send in
//! [`checks`] and [`answer`]; [`view`] is guest memory as the library wants it.
//!
//! What the worker needs of the jail (the tables are in `crate::jail`):
//! - capabilities CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETUID, SETGID, MKNOD, SETFCAP: files get the owner, mode,
//!   kind and attributes that the guest's kernel has already allowed. Not SYS_ADMIN: extended attributes `trusted.*`
//!   and `security.*` other than file capabilities can't be set, as in a container without it;
//! - a working directory and umask of its own (CLONE_FS), since both change for some requests;
//! - system calls for files by descriptor, credentials of this thread, and capget/capset.
//!
//! Open files: every inode that the guest remembers and every file it has open is a descriptor here. A guest that
//! holds more than the process's limit, less [`RESERVED_FILES`], gets ENFILE; nobody else notices.

mod answer;
mod checks;
mod place;
#[cfg(test)]
mod tests;
mod tree;
mod view;

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use nix::sys::resource::{Resource, getrlimit};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtiofsd::server::Server;

use super::worker::{Active, DataPath, Fault, Notify, Worker};
use super::{Activation, DeviceError, Env, VirtioDevice, read_config_from};
use crate::jail::ThreadKind;
use tree::Tree;
use view::View;

/// Descriptors that the guest's files leave to the rest of the process: vsock streams and what the VMM opens itself.
pub const RESERVED_FILES: u64 = 512;

const NAME: &str = "fs";
/// By this directory the library reopens a file that it holds as an O_PATH descriptor.
const PROC_SELF_FD: &str = "/proc/self/fd";
/// High priority, then requests. 512 descriptors let the driver send a MiB in one request.
const QUEUE_SIZES: &[u16] = &[128, 512];
/// Bytes of the tag in configuration space (virtio 1.2, 5.11.4).
const TAG_BYTES: usize = 36;

/// What is opened before the jail closes.
#[derive(Debug)]
pub struct Prepared {
    proc_self_fd: File,
}

impl Prepared {
    /// Opens /proc/self/fd as a detached clone of its mount. A plain descriptor would still belong to the host's mount
    /// namespace after the jail is closed, so `openat(fd, "../../../etc/shadow")` would open the host's file. The clone
    /// has no parent mount: `..` at its root is the root itself.
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

    /// Opens /proc/self/fd as a plain descriptor, which needs no privilege. For a process that stays outside of the
    /// jail; [`crate::jail::enter`] refuses this descriptor.
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

/// What the device is made with.
#[derive(Debug)]
pub struct Config {
    /// The name that the guest mounts, at most 36 bytes.
    pub tag: String,
    /// The directory that the guest sees, as the jailed process sees it: `/` in the jail.
    pub root: PathBuf,
    /// See [`Prepared`].
    pub prepared: Prepared,
}

/// The device.
pub struct Fs {
    worker: Worker,
    config: [u8; TAG_BYTES + 4],
}

impl Fs {
    /// Makes the device with its worker.
    ///
    /// # Errors
    /// Where the tag is too long, the root can't be opened, or the worker can't be started.
    pub fn new(config: Config, env: &Env) -> Result<Self, DeviceError> {
        let space = space(&config.tag).ok_or_else(|| DeviceError {
            device: NAME,
            reason: format!("the tag {:?} is not of 1 to {TAG_BYTES} bytes", config.tag),
        })?;
        let worker = Worker::spawn(NAME, ThreadKind::FileServer, env, move || Files::new(config))?;
        Ok(Self {
            worker,
            config: space,
        })
    }
}

/// Configuration space: the tag and the number of request queues.
fn space(tag: &str) -> Option<[u8; TAG_BYTES + 4]> {
    if tag.is_empty() || tag.len() > TAG_BYTES {
        return None;
    }
    let mut space = [0; TAG_BYTES + 4];
    let padded = tag.bytes().chain(std::iter::repeat(0)).take(TAG_BYTES);
    for (byte, value) in space.iter_mut().zip(padded.chain(1_u32.to_le_bytes())) {
        *byte = value;
    }
    Some(space)
}

impl VirtioDevice for Fs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.worker.activate(activation)
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.worker.reset()
    }
}

/// The data path. Requests are served one after the other: a host file system that hangs stops this guest's files.
struct Files {
    server: Server<Tree>,
    view: Option<View>,
}

impl Files {
    fn new(config: Config) -> Result<Self, String> {
        let (open_files, _) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| error.to_string())?;
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

impl DataPath for Files {
    fn start(&mut self, active: &mut Active) -> Result<(), Fault> {
        self.view = Some(View::of(&active.memory).map_err(|error| Fault::new("guest memory", error))?);
        Ok(())
    }

    fn on_queue(&mut self, index: u16, active: &mut Active) -> Result<(), Fault> {
        let Self {
            server,
            view: Some(view),
        } = self
        else {
            return Ok(());
        };
        active.serve(index, Notify::Each, |_, chain| {
            answer::answer(server, view, chain)
        })
    }

    /// Inodes and open files stay until the next driver's INIT, which forgets them.
    fn stop(&mut self, _active: &mut Active) {
        self.view = None;
    }
}
