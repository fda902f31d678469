//! Descriptors of files that the guest has not opened: in a root file system, the guest's kernel reads and
//! writes a file by its inode, without OPEN and RELEASE, and lists a directory without OPENDIR
//! (docs/shared-files.md). Called by [`super::tree`] for every request with a handle; opens files by the
//! library only, so that the host's FIFOs and device nodes stay closed.
//!
//! The descriptors are opened when they are needed, and kept: until the guest forgets the inode, so that a
//! deleted file's space is freed, or until others are used more. A file can be opened again at any time, also
//! a deleted one, because the library has a descriptor of each inode.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use virtiofsd::filesystem::{Context, FileSystem as _};
use virtiofsd::passthrough::PassthroughFs;

use super::streams::{Entries, ReadDirectory, Streams};

/// Descriptors of files that are kept. A file that is used without one costs two more system calls.
const MAX_FILES: usize = 256;

/// What a file is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading, or a request that any descriptor serves.
    Read,
    /// Writing; the descriptor can be read, too.
    Write,
}

/// An open file of the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFile {
    /// The library's number.
    pub inode: u64,
    /// The library's number of the descriptor.
    pub handle: u64,
    /// Whether it was opened for reading only or for both.
    pub access: Access,
}

/// Set in a handle that the guest has chosen, for a directory that it has not opened.
const NOT_OPENED: u64 = 1 << 63;

/// A handle of the library, as the guest gets it: 0 stands for a file that was not opened.
pub fn guest_handle(handle: u64) -> u64 {
    handle.wrapping_add(1)
}

/// The library's number of the guest's `handle`; None if the guest has not opened the file.
pub fn library_handle(handle: u64) -> Option<u64> {
    if handle & NOT_OPENED == 0 {
        handle.checked_sub(1)
    } else {
        None
    }
}

/// The descriptors. Inodes and handles are the library's.
#[derive(Default)]
pub struct Handles {
    /// The one that was used last is the last one.
    files: Mutex<Vec<OpenFile>>,
    streams: Streams,
}

impl Handles {
    /// A handle of file `inode` for `access`.
    ///
    /// # Errors
    /// That of opening the file.
    pub fn file(&self, files: &PassthroughFs, ctx: Context, inode: u64, access: Access) -> io::Result<u64> {
        let mut kept = lock(&self.files);
        if let Some(file) = remove(&mut kept, inode, access) {
            kept.push(file);
            return Ok(file.handle);
        }
        drop(kept);
        let file = self.open(files, ctx, inode, access)?;
        self.keep(files, ctx, file);
        Ok(file.handle)
    }

    /// Any descriptor of file `inode`, which nobody closes until it is passed to [`Handles::keep`].
    ///
    /// # Errors
    /// That of opening the file.
    pub fn take(&self, files: &PassthroughFs, ctx: Context, inode: u64) -> io::Result<OpenFile> {
        let kept = remove(&mut lock(&self.files), inode, Access::Read);
        kept.map_or_else(|| self.open(files, ctx, inode, Access::Read), Ok)
    }

    fn open(&self, files: &PassthroughFs, ctx: Context, inode: u64, access: Access) -> io::Result<OpenFile> {
        let flags = match access {
            Access::Read => libc::O_RDONLY,
            Access::Write => libc::O_RDWR,
        };
        let flags = (flags | libc::O_NONBLOCK).cast_unsigned();
        let handle = self.with_room(files, ctx, || files.open(ctx, inode, false, flags))?;
        Ok(OpenFile {
            inode,
            handle,
            access,
        })
    }

    /// Keeps `file`, and closes what it replaces: the one that was not used for the longest time, and one of
    /// the same inode that can do less.
    pub fn keep(&self, files: &PassthroughFs, ctx: Context, file: OpenFile) {
        let mut kept = lock(&self.files);
        let is_replaced = |other: &mut OpenFile| {
            other.inode == file.inode && (file.access == Access::Write || other.access == file.access)
        };
        let replaced: Vec<OpenFile> = kept.extract_if(.., is_replaced).collect();
        let oldest = (kept.len() >= MAX_FILES).then(|| kept.remove(0));
        kept.push(file);
        drop(kept);
        replaced
            .into_iter()
            .chain(oldest)
            .for_each(|file| close(files, ctx, file));
    }

    /// The entries that `request` wants; see [`Streams::read`].
    ///
    /// # Errors
    /// That of opening or reading the directory.
    pub fn list(&self, files: &PassthroughFs, ctx: Context, request: ReadDirectory) -> io::Result<Entries> {
        let open = || self.with_room(files, ctx, || files.opendir(ctx, request.inode, 0));
        self.streams.read(files, ctx, request, open)
    }

    /// The guest closes a directory that it has opened.
    pub fn release_directory(&self, guest_handle: u64) {
        self.streams.release(guest_handle);
    }

    /// Closes what there is of `inode`, which the guest has forgotten.
    pub fn forget(&self, files: &PassthroughFs, ctx: Context, inode: u64) {
        self.close(files, ctx, Some(inode));
    }

    /// Drops all, which the library has closed.
    pub fn clear(&self) {
        lock(&self.files).clear();
        self.streams.clear();
    }

    /// Closes what there is of `inode`, or everything.
    fn close(&self, files: &PassthroughFs, ctx: Context, inode: Option<u64>) {
        let is_closed = |file: &mut OpenFile| inode.is_none_or(|inode| file.inode == inode);
        let closed: Vec<OpenFile> = lock(&self.files).extract_if(.., is_closed).collect();
        closed.into_iter().for_each(|file| close(files, ctx, file));
        self.streams.forget(files, ctx, inode);
    }

    /// The handle that `open` returns. If the guest has too many open files, closes all that are kept here,
    /// which the guest does not know of, and tries again.
    fn with_room<O>(
        &self,
        files: &PassthroughFs,
        ctx: Context,
        open: impl Fn() -> io::Result<(Option<u64>, O)>,
    ) -> io::Result<u64> {
        let opened = open().or_else(|error| {
            if error.raw_os_error() != Some(libc::ENFILE) {
                return Err(error);
            }
            self.close(files, ctx, None);
            open()
        });
        let (handle, _) = opened?;
        handle.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }
}

/// Takes a file of `inode` that serves `access` out of `kept`.
fn remove(kept: &mut Vec<OpenFile>, inode: u64, access: Access) -> Option<OpenFile> {
    let index = kept
        .iter()
        .rposition(|file| file.inode == inode && (file.access == access || file.access == Access::Write))?;
    Some(kept.remove(index))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn close(files: &PassthroughFs, ctx: Context, file: OpenFile) {
    // Fails only if there is no such handle, which is then closed, too.
    let _ = files.release(ctx, file.inode, 0, file.handle, false, false, None);
}
