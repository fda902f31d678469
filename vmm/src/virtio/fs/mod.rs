//! virtio-fs (virtio 1.2, 5.11): the pod's shared tree, served in this process by virtiofsd's library, which
//! copies between files and guest memory directly. Created by `machine/virtio_devices.rs`, served by one
//! worker.
//!
//! The tree is the root of the VMM's mount namespace after the jail is closed; the shim attaches the
//! containers' mounts below it while the guest runs. Creation has two phases: [`Prepared::before_jail`] opens
//! /proc/self/fd, which does not exist in the jail; [`spawn`] does the rest afterwards. [`subtree`] decides
//! what the guest may cache, [`checks`] and [`request`] what it may send; [`memory_view`] is guest memory in
//! the library's type. Requests that wait for the host's disk have a thread of their own ([`syncs`]).
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
//!
//! Snapshots: inodes and open files are state of this process alone. So the device can be saved until the
//! driver has sent its first request, which begins a [`Session`]; a restored device serves another tree.

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
mod syncs;
#[cfg(test)]
mod tests;
mod tree;

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtiofsd::filesystem::{Context, FileSystem as _};
use virtiofsd::passthrough::PassthroughFs;
use virtiofsd::server::Server;
use vmm_sys_util::epoll::EventSet;

use super::worker::{ActiveDevice, Chain, DataPath, Fault, Notify};
use super::{Device, DeviceError, Env, Session, Spec};
use crate::jail::calls::fs::PROFILE;
pub use counts::counts;
use handles::{Handles, OpenFile, library_handle};
use memory_view::MemoryView;
use request::{Served, reply};
use subtree::library_inode;
use syncs::{Job, Scope, Syncs, Waiting};
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
    let (thread_env, session) = (env.clone(), Session::default());
    let thread_session = session.clone();
    let device = Device::spawn(spec(&config.tag)?, env, move || {
        FsDataPath::new(config, thread_session, &thread_env)
    })?;
    Ok(device.with_session(session))
}

fn spec(tag: &str) -> Result<Spec, DeviceError> {
    Ok(Spec {
        name: NAME,
        device_type: VIRTIO_ID_FS,
        queue_sizes: QUEUE_SIZES.to_vec(),
        features: 0,
        config: config_space(tag).map_err(DeviceError::at(NAME, "check the tag"))?,
        config_writable: 0..0,
        profile: &PROFILE,
    })
}

/// The configuration space: the tag, padded with zeros, and the number of request queues, 1.
fn config_space(tag: &str) -> Result<Vec<u8>, String> {
    if tag.is_empty() || tag.len() > TAG_BYTES {
        return Err(format!("expected 1 to {TAG_BYTES} bytes, got {tag:?}"));
    }
    let padded = tag.bytes().chain(std::iter::repeat(0)).take(TAG_BYTES);
    Ok(padded.chain(1_u32.to_le_bytes()).collect())
}

/// The event of results of the sync thread.
const SYNCED: u64 = 0;

/// Serves requests one after the other: a host file system that hangs blocks all files of this guest, unless it
/// hangs in a request that waits for the disk.
struct FsDataPath {
    server: Server<Tree>,
    files: Arc<PassthroughFs>,
    handles: Arc<Handles>,
    syncs: Syncs,
    session: Session,
    /// Guest memory of the current activation.
    view: Option<MemoryView>,
}

impl FsDataPath {
    fn new(config: Config, session: Session, env: &Env) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let path = Self::with_syncs(config, |files| {
            Syncs::spawn(env, move |ctx, job| carry_out(&files, ctx, job))
        })?;
        Ok(Self { session, ..path })
    }

    /// With the sync thread that `spawn` spawns for the library's files.
    fn with_syncs(
        config: Config,
        spawn: impl FnOnce(Arc<PassthroughFs>) -> Result<Syncs, Box<dyn Error + Send + Sync>>,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let (open_files, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let tree = Tree::new(
            config.root,
            config.prepared.proc_self_fd,
            open_files.saturating_sub(RESERVED_FILES),
        )?;
        let (files, handles) = (Arc::clone(&tree.files), Arc::clone(&tree.handles));
        Ok(Self {
            server: Server::new(tree),
            syncs: spawn(Arc::clone(&files))?,
            files,
            handles,
            session: Session::default(),
            view: None,
        })
    }

    /// Serves a chain; None if its request is with the sync thread.
    fn serve(&mut self, queue: u16, chain: Chain) -> Option<u32> {
        let Some(view) = &self.view else {
            return Some(0);
        };
        // Any request, since the guest need not begin with FUSE_INIT.
        self.session.begin();
        let has_room = self.syncs.has_room();
        let request = match request::serve(&self.server, view, &chain, has_room) {
            Served::Replied(length) => return Some(length),
            Served::Sync(request) => request,
        };
        match self.work(&request) {
            Ok(work) => {
                self.syncs.start(queue, chain, request, work);
                None
            }
            Err(error) => Some(reply(view, &chain, request.unique, &Err(error)).unwrap_or(0)),
        }
    }

    /// What the sync thread has to do for `request`, and the file that is taken for it.
    fn work(&self, request: &syncs::Request) -> io::Result<(Job, Option<OpenFile>)> {
        let inode = library_inode(request.inode);
        let Scope::File { handle, data_only } = request.scope else {
            let scope = request.scope;
            return Ok((Job { inode, scope }, None));
        };
        let (handle, file) = match library_handle(handle) {
            Some(handle) => (handle, None),
            None => {
                let file = self.handles.take(&self.files, request.ctx, inode)?;
                (file.handle, Some(file))
            }
        };
        let scope = Scope::File { handle, data_only };
        Ok((Job { inode, scope }, file))
    }

    /// Replies to a request that the sync thread has carried out.
    fn finish(
        &self,
        waiting: &Waiting,
        result: &io::Result<()>,
        active: &mut ActiveDevice,
    ) -> Result<(), Fault> {
        let request = &waiting.request;
        if let Some(file) = waiting.file {
            self.handles.keep(&self.files, request.ctx, file);
        }
        let view = self.view.as_ref();
        let length = view.and_then(|view| reply(view, &waiting.chain, request.unique, result));
        active.push(waiting.queue, waiting.chain.head_index(), length.unwrap_or(0))?;
        active.notify(waiting.queue)
    }
}

/// The sync thread's system call.
fn carry_out(files: &PassthroughFs, ctx: Context, job: Job) -> io::Result<()> {
    match job.scope {
        Scope::File { handle, data_only } => files.fsync(ctx, job.inode, data_only, handle),
        Scope::FileSystem => files.syncfs(ctx, job.inode),
    }
}

impl DataPath for FsDataPath {
    fn start(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        self.on_memory(active)?;
        active
            .poller
            .add(&self.syncs.ready, SYNCED, EventSet::IN)
            .map_err(Fault::io("watch the sync thread's results"))
    }

    fn on_queue(&mut self, index: u16, active: &mut ActiveDevice) -> Result<(), Fault> {
        active.serve_or_keep(index, Notify::Each, |_, chain| self.serve(index, chain))
    }

    fn on_event(&mut self, _token: u64, _ready: EventSet, active: &mut ActiveDevice) -> Result<(), Fault> {
        // Fails if an earlier event has read it.
        let _ = self.syncs.ready.read();
        while let Some((waiting, result)) = self.syncs.next_result() {
            self.finish(&waiting, &result, active)?;
        }
        Ok(())
    }

    fn on_memory(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        self.view = Some(MemoryView::of(&active.memory).map_err(Fault::Memory)?);
        Ok(())
    }

    fn quiesce(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        while let Some((waiting, result)) = self.syncs.wait() {
            self.finish(&waiting, &result, active)?;
        }
        Ok(())
    }

    /// Inodes and open files are kept until the next driver's INIT request, which drops them.
    fn stop(&mut self, active: &mut ActiveDevice) {
        self.view = None;
        self.syncs.forget_all();
        // Fails if it was not added.
        let _ = active.poller.remove(&self.syncs.ready);
    }
}
