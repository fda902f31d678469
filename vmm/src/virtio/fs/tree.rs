//! The file system that the guest sees: virtiofsd's passthrough, with three additions. What the guest may
//! cache depends on the subtree ([`super::subtree`]), files of a root file system need not be opened
//! ([`super::handles`]), and arguments that the library would trust are checked ([`super::checks`]). Its
//! operations are in [`super::operations`].

use std::error::Error;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use nacre_protocol::guest::ROOTFS_DIR;
use virtiofsd::filesystem::{Context, FileSystem as _, OpenOptions};
use virtiofsd::passthrough::PassthroughFs;

use super::handles::{Access, Handles, OpenFile, guest_handle, library_handle};
use super::library;
use super::subtree::{Subtree, library_inode};

/// How a file of a root file system is opened: the guest keeps its cached pages after close, and sends no
/// FLUSH on close (every write has reached the host by then, and locks stay in the guest).
const ROOTFS_OPEN: OpenOptions = OpenOptions::KEEP_CACHE.union(OpenOptions::NOFLUSH);

/// Implements the library's [`FileSystem`](virtiofsd::filesystem::FileSystem) on top of its [`PassthroughFs`].
pub struct Tree {
    pub(super) files: Arc<PassthroughFs>,
    /// Of files that the guest has not opened.
    pub(super) handles: Arc<Handles>,
}

impl Tree {
    /// Serves `root`; see [`library::files`].
    ///
    /// # Errors
    /// If `root` is not UTF-8 or the library can't start.
    pub fn new(
        root: PathBuf,
        proc_self_fd: File,
        max_open_files: u64,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(Self {
            files: Arc::new(library::files(root, proc_self_fd, max_open_files)?),
            handles: Arc::default(),
        })
    }

    /// The library's number of the guest's `inode`, and a handle of it for `access`: the guest's, or ours if
    /// the guest has none.
    pub(super) fn open_file(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        access: Access,
    ) -> io::Result<(u64, u64)> {
        let inode = library_inode(inode);
        let handle = match library_handle(handle) {
            Some(handle) => handle,
            None => self.handles.file(&self.files, ctx, inode, access)?,
        };
        Ok((inode, handle))
    }

    /// What the guest gets for a file in `subtree` that the library has opened: nothing in a root file
    /// system, where we keep it. Elsewhere, closing a file that was written may fail on the host, so the
    /// guest sends FLUSH.
    pub(super) fn hand_out(
        &self,
        ctx: Context,
        subtree: Subtree,
        file: OpenFile,
        options: OpenOptions,
    ) -> (Option<u64>, OpenOptions) {
        if subtree.is_rootfs() {
            self.handles.keep(&self.files, ctx, file);
            return (None, options | ROOTFS_OPEN);
        }
        let mut options = match file.access {
            Access::Read => options | OpenOptions::NOFLUSH,
            Access::Write => options,
        };
        if subtree == Subtree::Kernel {
            options |= OpenOptions::DIRECT_IO;
        }
        (Some(guest_handle(file.handle)), options)
    }

    /// The subtree of `name` in the guest's inode `parent`, which the library has as `inode`. A root file
    /// system that is read-only on the host is one of its own, because opening a file for writing must fail,
    /// and not only writing. No file of the layers below a writable layer is opened for writing.
    pub(super) fn subtree(&self, ctx: Context, parent: u64, name: &CStr, inode: u64) -> Subtree {
        let directory = Subtree::of(parent);
        let subtree = directory.child(name);
        let is_root = directory == Subtree::Container && name.to_bytes() == ROOTFS_DIR.as_bytes();
        if is_root && self.is_read_only(ctx, inode) {
            Subtree::ReadOnlyRootfs
        } else {
            subtree
        }
    }

    fn is_read_only(&self, ctx: Context, inode: u64) -> bool {
        self.files
            .statfs(ctx, inode)
            .is_ok_and(|statfs| statfs.f_flag & libc::ST_RDONLY != 0)
    }
}

/// The flags by which the library opens a file in `subtree`, and what the descriptor is good for. In a root
/// file system, one that is written must serve readers, too.
pub(super) fn access_of(subtree: Subtree, flags: u32) -> (u32, Access) {
    let [mode, read_only, write_only, both] =
        [libc::O_ACCMODE, libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR].map(i32::cast_unsigned);
    if flags & mode == read_only {
        (flags, Access::Read)
    } else if flags & mode == write_only && subtree.is_rootfs() {
        (flags & !mode | both, Access::Write)
    } else {
        (flags, Access::Write)
    }
}
