//! How directories are read. Called by [`super::operations`] for READDIR and READDIRPLUS.
//!
//! The guest reads a directory in pages, and often takes fewer entries than the host returned. The others are
//! kept for its next request: reading them again, after a seek, would miss some if it has removed files
//! meanwhile, since the offsets of some file systems count the entries that are left (tmpfs before Linux
//! 6.6).
//!
//! In a root file system, the guest reads a directory without having opened it, and chooses a handle for each
//! reader. Each has a descriptor of ours, because overlayfs numbers the entries for each descriptor. It is
//! closed at the end of the directory, when the guest forgets the inode, or when others are used more; if its
//! reader goes on then, it is opened again.

use std::ffi::{CStr, CString};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtiofsd::filesystem::{Context, DirEntry, DirectoryIterator, FileSystem as _};
use virtiofsd::passthrough::PassthroughFs;

/// Directories that are being read, of which something is kept.
const MAX_STREAMS: usize = 64;
/// Most bytes that are read from a directory at once.
const MAX_BATCH: u32 = 32 * 1024;

/// An entry as the host returned it.
#[derive(Debug)]
struct OwnedEntry {
    inode: u64,
    /// Of what follows the entry.
    offset: u64,
    kind: u32,
    name: CString,
}

/// What the host returned at once.
type Batch = Arc<[OwnedEntry]>;

/// A directory that is being read. Numbers are the library's.
struct Stream {
    inode: u64,
    handle: u64,
    /// What the guest calls it.
    guest_handle: u64,
    /// Whether the guest has not opened it.
    is_ours: bool,
    /// The offset of the batch's first entry.
    start: u64,
    batch: Batch,
}

impl Stream {
    /// The index in the batch of what follows `offset`.
    fn index(&self, offset: u64) -> Option<usize> {
        if offset == self.start {
            return Some(0);
        }
        let before = self.batch.iter().position(|entry| entry.offset == offset)?;
        before.checked_add(1)
    }
}

/// Entries for one request, which takes as many as fit into its reply.
#[derive(Default)]
pub struct Entries {
    batch: Option<Batch>,
    next: usize,
}

impl Entries {
    /// Whether the directory has no more.
    pub fn is_end(&self) -> bool {
        self.batch.as_ref().is_none_or(|batch| self.next >= batch.len())
    }
}

impl DirectoryIterator for Entries {
    fn next(&mut self) -> Option<DirEntry<'_>> {
        let entry = self.batch.as_ref()?.get(self.next)?;
        self.next = self.next.saturating_add(1);
        Some(DirEntry {
            ino: entry.inode,
            offset: entry.offset,
            type_: entry.kind,
            name: entry.name.as_c_str(),
        })
    }
}

/// A request to read a directory.
#[derive(Debug, Clone, Copy)]
pub struct ReadDirectory {
    /// The library's number.
    pub inode: u64,
    /// What the guest calls its open directory.
    pub guest_handle: u64,
    /// The library's handle; None if the guest has not opened it.
    pub handle: Option<u64>,
    /// How many bytes the guest has room for.
    pub size: u32,
    /// What the guest wants is after the entry with this offset, or the first entries if it is 0.
    pub offset: u64,
}

/// The directories that are being read; the one that was used last is the last one.
#[derive(Default)]
pub struct Streams(Mutex<Vec<Stream>>);

impl Streams {
    /// The entries that `request` wants. `open` opens the directory if the guest has not.
    ///
    /// # Errors
    /// That of opening or reading the directory.
    pub fn read(
        &self,
        files: &PassthroughFs,
        ctx: Context,
        request: ReadDirectory,
        open: impl FnOnce() -> io::Result<u64>,
    ) -> io::Result<Entries> {
        let mut stream = match self.take(request) {
            Some(stream) => stream,
            None => Stream {
                inode: request.inode,
                handle: request.handle.map_or_else(open, Ok)?,
                guest_handle: request.guest_handle,
                is_ours: request.handle.is_none(),
                start: request.offset,
                batch: Batch::default(),
            },
        };
        let mut next = stream.index(request.offset).unwrap_or(usize::MAX);
        if next >= stream.batch.len() {
            match batch(files, ctx, &stream, request) {
                Ok(batch) => (stream.start, stream.batch, next) = (request.offset, batch, 0),
                Err(error) => {
                    self.put(files, ctx, stream);
                    return Err(error);
                }
            }
        }
        let entries = Entries {
            batch: Some(Arc::clone(&stream.batch)),
            next,
        };
        if entries.is_end() {
            close(files, ctx, &stream);
        } else {
            self.put(files, ctx, stream);
        }
        Ok(entries)
    }

    /// The stream of `request`'s reader.
    fn take(&self, request: ReadDirectory) -> Option<Stream> {
        let mut kept = self.lock();
        let index = kept.iter().rposition(|stream| {
            stream.guest_handle == request.guest_handle && stream.inode == request.inode
        })?;
        let mut stream = kept.remove(index);
        if request.offset == 0 {
            // rewinddir(3) makes the directory be read anew.
            stream.batch = Batch::default();
        }
        Some(stream)
    }

    fn put(&self, files: &PassthroughFs, ctx: Context, stream: Stream) {
        let mut kept = self.lock();
        let oldest = (kept.len() >= MAX_STREAMS).then(|| kept.remove(0));
        kept.push(stream);
        drop(kept);
        if let Some(stream) = oldest {
            close(files, ctx, &stream);
        }
    }

    /// Drops what there is of a directory that the guest has opened, and now closes.
    pub fn release(&self, guest_handle: u64) {
        self.lock().retain(|stream| stream.guest_handle != guest_handle);
    }

    /// Closes our streams of `inode`, or of all directories.
    pub fn forget(&self, files: &PassthroughFs, ctx: Context, inode: Option<u64>) {
        let is_forgotten =
            |stream: &mut Stream| stream.is_ours && inode.is_none_or(|inode| stream.inode == inode);
        let forgotten: Vec<Stream> = self.lock().extract_if(.., is_forgotten).collect();
        forgotten.iter().for_each(|stream| close(files, ctx, stream));
    }

    /// Drops all, which the library has closed.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Stream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next entries of `stream`. The library seeks to the offset, which changes nothing if it is where it
/// was.
fn batch(files: &PassthroughFs, ctx: Context, stream: &Stream, request: ReadDirectory) -> io::Result<Batch> {
    let size = request.size.min(MAX_BATCH);
    let mut entries = files.readdir(ctx, stream.inode, stream.handle, size, request.offset)?;
    let owned = std::iter::from_fn(|| entries.next().map(OwnedEntry::from));
    Ok(owned.collect())
}

impl From<DirEntry<'_>> for OwnedEntry {
    fn from(entry: DirEntry<'_>) -> Self {
        Self {
            inode: entry.ino,
            offset: entry.offset,
            kind: entry.type_,
            name: CStr::to_owned(entry.name),
        }
    }
}

/// Closes the descriptor of `stream` if it is ours.
fn close(files: &PassthroughFs, ctx: Context, stream: &Stream) {
    if stream.is_ours {
        // Fails only if there is no such handle, which is then closed, too.
        let _ = files.releasedir(ctx, stream.inode, 0, stream.handle);
    }
}
