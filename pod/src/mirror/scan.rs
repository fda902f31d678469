//! Reads what a volume's directory contains now. Follows no symbolic link, opens nothing outside of the
//! directory's own file system, and stops at the limits of a mirror.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nacre_protocol::guest::{MAX_MIRROR_BYTES, MAX_MIRROR_ENTRIES, MAX_MIRROR_PATH};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, readlinkat, statat};
use rustix::io::Errno;

use super::tree::{Attributes, DATA, Entry, Kind, Tree, Version};

/// Most directories of a mirror; each takes one of the host's inotify watches.
const MAX_DIRECTORIES: usize = 1024;
/// The bits of a mode that are permissions.
const PERMISSIONS: u32 = 0o7777;

/// Why a volume can't be copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host changed it meanwhile.
    #[error("it changes faster than it can be copied")]
    Changed,
    /// `..data` leads to a directory that was not there when the volume was listed.
    #[error("..data leads nowhere")]
    NoVersion,
    #[error("{path:?}: {source}")]
    File { path: PathBuf, source: io::Error },
    /// It has something that a mirror can't have.
    #[error("{path:?} is neither a file nor a directory nor a symbolic link")]
    Unsupported { path: PathBuf },
    #[error("its {what} are more than {most}")]
    TooLarge { what: &'static str, most: u64 },
}

impl Error {
    /// Whether another look may succeed.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Changed | Self::NoVersion)
    }

    /// A name that was just found may be gone, or be another file.
    fn at(path: &Path, errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::AGAIN | Errno::STALE => Self::Changed,
            errno => Self::File {
                path: path.to_owned(),
                source: errno.into(),
            },
        }
    }
}

/// Reads the directory `root`. Before a directory is listed, `watch` is called with it, so that no change is
/// missed.
///
/// # Errors
/// [`Error`].
pub fn scan(root: impl AsFd, mut watch: impl FnMut(BorrowedFd<'_>) -> io::Result<()>) -> Result<Tree, Error> {
    let mut scan = Scan {
        root: root.as_fd(),
        tree: Tree::empty(),
        directories: vec![PathBuf::new()],
        bytes: 0,
    };
    let mut visited = 0_usize;
    while let Some(path) = scan.directories.pop() {
        visited += 1;
        if visited > MAX_DIRECTORIES {
            return Err(too_large("directories", MAX_DIRECTORIES));
        }
        let directory = scan.open(&path)?;
        watch(directory.as_fd()).map_err(|source| Error::File {
            path: path.clone(),
            source,
        })?;
        scan.list(path, directory)?;
    }
    scan.check_data()?;
    Ok(scan.tree)
}

/// Opens `path` below `root`, whatever the host has made of its components.
///
/// # Errors
/// [`Error::Changed`] if it is not there any more.
pub fn open_below(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Error> {
    let name = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    openat2(root, name, flags, Mode::empty(), resolve).map_err(|errno| Error::at(path, errno))
}

/// The version of the file that `stat` is of.
pub fn version(stat: &Stat) -> Version {
    Version {
        inode: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        modified: (
            stat.st_mtime,
            u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        ),
    }
}

fn too_large(what: &'static str, most: impl TryInto<u64>) -> Error {
    let most = most.try_into().unwrap_or(u64::MAX);
    Error::TooLarge { what, most }
}

struct Scan<'a> {
    root: BorrowedFd<'a>,
    tree: Tree,
    /// Those that are still to be listed.
    directories: Vec<PathBuf>,
    bytes: u64,
}

impl Scan<'_> {
    fn open(&self, path: &Path) -> Result<OwnedFd, Error> {
        open_below(self.root, path, OFlags::DIRECTORY)
    }

    fn list(&mut self, path: PathBuf, directory: OwnedFd) -> Result<(), Error> {
        let stat = rustix::fs::fstat(&directory).map_err(|errno| Error::at(&path, errno))?;
        let kind = Kind::Directory;
        let attributes = attributes(&stat);
        self.tree.insert(path.clone(), Entry { kind, attributes });
        let names = Dir::read_from(&directory).map_err(|errno| Error::at(&path, errno))?;
        for name in names {
            let name = name.map_err(|errno| Error::at(&path, errno))?;
            let name = OsStr::from_bytes(name.file_name().to_bytes());
            if name != "." && name != ".." {
                self.add(&directory, path.join(name), name)?;
            }
        }
        Ok(())
    }

    /// Adds `name` of `directory`, whose path is `path`.
    fn add(&mut self, directory: &OwnedFd, path: PathBuf, name: &OsStr) -> Result<(), Error> {
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|errno| Error::at(&path, errno))?;
        if path.as_os_str().len() > MAX_MIRROR_PATH {
            return Err(too_large("paths' bytes", MAX_MIRROR_PATH));
        }
        if self.tree.len() + self.directories.len() >= MAX_MIRROR_ENTRIES as usize {
            return Err(too_large("files", MAX_MIRROR_ENTRIES));
        }
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.directories.push(path);
                return Ok(());
            }
            FileType::RegularFile => Kind::File(version(&stat)),
            FileType::Symlink => {
                let target = readlinkat(directory, name, Vec::new());
                let target = target.map_err(|errno| match errno {
                    // No longer a link.
                    Errno::INVAL => Error::Changed,
                    errno => Error::at(&path, errno),
                })?;
                Kind::Symlink(OsStr::from_bytes(target.to_bytes()).to_owned())
            }
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => return Err(Error::Unsupported { path }),
        };
        let attributes = attributes(&stat);
        let entry = Entry { kind, attributes };
        self.bytes = self.bytes.saturating_add(entry.bytes());
        if self.bytes > MAX_MIRROR_BYTES {
            return Err(too_large("bytes", MAX_MIRROR_BYTES));
        }
        self.tree.insert(path, entry);
        Ok(())
    }

    /// The version that `..data` leads to must be complete in the tree. kubelet removes a version only after it
    /// has moved the link, so it is if the link is still the same.
    fn check_data(&self) -> Result<(), Error> {
        let Some(target) = self.tree.data() else {
            return Ok(());
        };
        let now = readlinkat(self.root, DATA, Vec::new()).map_err(|_| Error::Changed)?;
        let is_same = OsStr::from_bytes(now.to_bytes()) == target;
        match (is_same, self.tree.get(target)) {
            (true, Some(_)) => Ok(()),
            (true, None) => Err(Error::NoVersion),
            (false, _) => Err(Error::Changed),
        }
    }
}

fn attributes(stat: &Stat) -> Attributes {
    Attributes {
        mode: stat.st_mode & PERMISSIONS,
        uid: stat.st_uid,
        gid: stat.st_gid,
    }
}

#[cfg(test)]
mod tests;
