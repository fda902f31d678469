//! Carries changes of a mirror out in the guest: bounded batches of operations, a file's content in parts. What is
//! known of the mirror follows the agent's replies, so that a failure is made good by the next difference.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nacre_protocol::agent::mirror_operation::Operation;
use nacre_protocol::agent::{
    FileAttributes, MakeDirectory, MakeSymlink, MirrorOperation, RemoveFile, RenameFile, SetAttributes,
    WriteFile,
};
use nacre_protocol::guest::MAX_MIRROR_OPERATIONS;
use rustix::fs::OFlags;

use super::scan::{self, open_below, version};
use super::tree::{Attributes, Change, Kind, Tree, Version};
use crate::guest::{CallError, Guest};

/// Most bytes of content in one call, and in one part of a file. ttrpc's messages could have 4 MiB, but each is in the
/// shim's memory several times.
const MAX_CONTENT: usize = 256 << 10;
/// Most bytes of everything else in one call.
const MAX_NAMES: usize = 256 << 10;

/// Why a mirror could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Host(#[from] scan::Error),
    /// The agent could not carry an operation out.
    #[error("in the guest: {0}")]
    Refused(String),
    /// The call failed.
    #[error("the agent: {0:?}")]
    Call(CallError),
}

/// The way to a mirror in the guest.
pub struct Sender<'a> {
    guest: &'a Guest,
    number: u32,
    /// The directory on the host.
    root: BorrowedFd<'a>,
    /// What the mirror contains.
    known: &'a mut Tree,
    batch: Batch,
}

/// Operations of one call, and the change that each completes.
#[derive(Default)]
struct Batch {
    operations: Vec<MirrorOperation>,
    completes: Vec<Option<Change>>,
    content: usize,
    names: usize,
}

impl<'a> Sender<'a> {
    /// Changes of mirror `number`, whose files are copied from `root`; `known` is what it contains.
    pub fn new(guest: &'a Guest, number: u32, root: BorrowedFd<'a>, known: &'a mut Tree) -> Self {
        let batch = Batch::default();
        Self {
            guest,
            number,
            root,
            known,
            batch,
        }
    }

    /// Carries `changes` out in their order.
    ///
    /// # Errors
    /// [`Error`]; the changes before the one that failed are carried out.
    pub async fn send(mut self, changes: Vec<Change>) -> Result<(), Error> {
        for change in changes {
            match &change {
                Change::WriteFile(path, attributes, expected) => {
                    let file = open_below(self.root, path, OFlags::empty())?;
                    let content = Content::open(path, file.into(), *expected)?;
                    self.write(content, *attributes, &change).await?;
                }
                Change::MakeDirectory(..)
                | Change::MakeSymlink(..)
                | Change::SetAttributes(..)
                | Change::Rename { .. }
                | Change::Remove(_) => {
                    let operation = operation(&change);
                    self.push(operation, Some(change)).await?;
                }
            }
        }
        self.flush().await
    }

    async fn write(
        &mut self,
        mut content: Content<'_>,
        attributes: Attributes,
        change: &Change,
    ) -> Result<(), Error> {
        let modified = content.expected.modified;
        loop {
            let offset = content.offset;
            let part = content.read()?;
            let is_last = content.is_complete()?;
            let operation = Operation::WriteFile(WriteFile {
                path: bytes(content.path),
                offset,
                content: part,
                attributes: is_last.then(|| wire(attributes, modified)).into(),
                ..Default::default()
            });
            let completes = is_last.then(|| change.clone());
            self.push(operation, completes).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    async fn push(&mut self, operation: Operation, completes: Option<Change>) -> Result<(), Error> {
        let (content, names) = size(&operation);
        let batch = &self.batch;
        if batch.operations.len() >= MAX_MIRROR_OPERATIONS
            || batch.content + content > MAX_CONTENT
            || batch.names + names > MAX_NAMES
        {
            self.flush().await?;
        }
        let batch = &mut self.batch;
        batch.content += content;
        batch.names += names;
        batch.completes.push(completes);
        batch.operations.push(MirrorOperation {
            operation: Some(operation),
            ..Default::default()
        });
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let batch = std::mem::take(&mut self.batch);
        if batch.operations.is_empty() {
            return Ok(());
        }
        let reply = self.guest.change_mirror(self.number, batch.operations).await;
        let reply = reply.map_err(Error::Call)?;
        let all = batch.completes.len();
        let done = usize::try_from(reply.done).unwrap_or(usize::MAX);
        for change in batch.completes.iter().take(done).flatten() {
            self.known.apply(change);
        }
        if done < all || !reply.error.is_empty() {
            return Err(Error::Refused(reply.error));
        }
        Ok(())
    }
}

/// A file that is copied, which must not change meanwhile.
struct Content<'a> {
    path: &'a Path,
    file: File,
    expected: Version,
    offset: u64,
}

impl<'a> Content<'a> {
    fn open(path: &'a Path, file: File, expected: Version) -> Result<Self, Error> {
        let content = Self {
            path,
            file,
            expected,
            offset: 0,
        };
        content.check()?;
        Ok(content)
    }

    /// The next part; empty at the end.
    fn read(&mut self) -> Result<Vec<u8>, Error> {
        let left = self.expected.size.saturating_sub(self.offset);
        let mut part = Vec::new();
        // An interrupted read is repeated, and a short one is the end.
        let most = left.min(MAX_CONTENT as u64);
        let read = (&mut self.file).take(most).read_to_end(&mut part);
        read.map_err(|source| self.failed(source))?;
        if part.is_empty() && left > 0 {
            return Err(scan::Error::Changed.into());
        }
        self.offset = self.offset.saturating_add(part.len() as u64);
        Ok(part)
    }

    /// Whether all of it is read.
    fn is_complete(&self) -> Result<bool, Error> {
        if self.offset < self.expected.size {
            return Ok(false);
        }
        self.check()?;
        Ok(true)
    }

    /// The host may have changed it since it was found.
    fn check(&self) -> Result<(), Error> {
        let stat = rustix::fs::fstat(&self.file).map_err(|error| self.failed(error.into()))?;
        if version(&stat) == self.expected {
            Ok(())
        } else {
            Err(scan::Error::Changed.into())
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        let path = self.path.to_owned();
        scan::Error::File { path, source }.into()
    }
}

/// Any change but a file's, whose content comes in parts.
fn operation(change: &Change) -> Operation {
    match change {
        Change::MakeDirectory(path, attributes) => Operation::MakeDirectory(MakeDirectory {
            path: bytes(path),
            attributes: Some(wire(*attributes, (0, 0))).into(),
            ..Default::default()
        }),
        Change::WriteFile(path, attributes, version) => Operation::WriteFile(WriteFile {
            path: bytes(path),
            attributes: Some(wire(*attributes, version.modified)).into(),
            ..Default::default()
        }),
        Change::MakeSymlink(path, target, attributes) => Operation::MakeSymlink(MakeSymlink {
            path: bytes(path),
            target: target.as_bytes().to_vec(),
            attributes: Some(wire(*attributes, (0, 0))).into(),
            ..Default::default()
        }),
        Change::SetAttributes(path, entry) => {
            let modified = match &entry.kind {
                Kind::File(version) => version.modified,
                Kind::Directory | Kind::Symlink(_) => (0, 0),
            };
            Operation::SetAttributes(SetAttributes {
                path: bytes(path),
                attributes: Some(wire(entry.attributes, modified)).into(),
                ..Default::default()
            })
        }
        Change::Rename { from, to } => Operation::Rename(RenameFile {
            from: bytes(from),
            to: bytes(to),
            ..Default::default()
        }),
        Change::Remove(path) => Operation::Remove(RemoveFile {
            path: bytes(path),
            ..Default::default()
        }),
    }
}

/// The bytes of content and of names in an operation.
fn size(operation: &Operation) -> (usize, usize) {
    /// Everything else.
    const REST: usize = 64;
    let (content, names) = match operation {
        Operation::WriteFile(write) => (write.content.len(), write.path.len()),
        Operation::MakeSymlink(link) => (0, link.path.len() + link.target.len()),
        Operation::MakeDirectory(make) => (0, make.path.len()),
        Operation::SetAttributes(set) => (0, set.path.len()),
        Operation::Rename(rename) => (0, rename.from.len() + rename.to.len()),
        Operation::Remove(remove) => (0, remove.path.len()),
        _ => (0, 0),
    };
    (content, names + REST)
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn wire(attributes: Attributes, (mtime_s, mtime_ns): (i64, u32)) -> FileAttributes {
    FileAttributes {
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        mtime_s,
        mtime_ns,
        ..Default::default()
    }
}
