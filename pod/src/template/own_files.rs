//! Opens directories and files of the store, each only if no other user can have made or changed it. Never follows a
//! symbolic link, and never blocks: a FIFO in a file's place would otherwise hang a pod's start.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

/// Why a directory or a file was not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// It does not exist.
    #[error("does not exist")]
    Missing,
    /// It must be replaced.
    #[error("must be a {0} that belongs to the user of this process and that no other can write")]
    Unsafe(&'static str),
    /// openat(2) or fstat(2) failed, which says nothing of it.
    #[error(transparent)]
    Io(#[from] Errno),
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Missing => io::ErrorKind::NotFound.into(),
            Fault::Unsafe(_) => Self::other(fault.to_string()),
            Fault::Io(errno) => errno.into(),
        }
    }
}

/// Opens the directory at `path`, from `parent` if it is relative.
pub(super) fn open_directory(parent: impl AsFd, path: impl AsRef<Path>) -> Result<OwnedFd, Fault> {
    open(parent, path.as_ref(), FileType::Directory)
}

/// Opens the regular file `name` of `directory` for reading.
pub(super) fn open_file(directory: impl AsFd, name: impl AsRef<Path>) -> Result<File, Fault> {
    open(directory, name.as_ref(), FileType::RegularFile).map(File::from)
}

fn open(parent: impl AsFd, path: &Path, expected: FileType) -> Result<OwnedFd, Fault> {
    let name = if expected == FileType::Directory {
        "directory"
    } else {
        "regular file"
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let opened = openat(parent, path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => Fault::Missing,
        // A symbolic link; a file in a directory's place; a socket, or a device without a driver.
        Errno::LOOP | Errno::NOTDIR | Errno::NXIO | Errno::NODEV => Fault::Unsafe(name),
        errno => Fault::Io(errno),
    })?;
    let stat = fstat(&opened)?;
    let is_expected = FileType::from_raw_mode(stat.st_mode) == expected;
    let is_own = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o022 == 0;
    if is_expected && is_own {
        Ok(opened)
    } else {
        Err(Fault::Unsafe(name))
    }
}
