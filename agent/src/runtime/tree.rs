//! A container's root file system before pivot_root(2): names in it are looked up and made below
//! its directory, and a symbolic link or ".." never leads out of it. Used by the steps that complete the
//! root; never follows a magic link of procfs.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::{Errno, Result};

/// Mode of a directory that is made.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
/// Mode of a file that is made.
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// How often a path is looked up: openat2(2) fails with EAGAIN if it has ".." and anything in the guest was renamed or
/// mounted meanwhile.
const ATTEMPTS: usize = 128;

/// A directory that names are looked up below.
pub struct Tree(OwnedFd);

impl From<OwnedFd> for Tree {
    /// The tree in an open directory.
    fn from(directory: OwnedFd) -> Self {
        Self(directory)
    }
}

impl Tree {
    /// The tree in `directory`.
    pub fn open(directory: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, directory, flags, Mode::empty()).map(Self)
    }

    /// Opens `path`, following links, with O_PATH and `flags`.
    pub fn find(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        self.open_as(path, flags | OFlags::PATH, Mode::empty())
    }

    /// Opens the directory `path`, following links, for more than its name.
    pub fn find_to_read(&self, path: &Path) -> Result<OwnedFd> {
        self.open_as(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    }

    fn open_as(&self, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        let below = path.strip_prefix("/").unwrap_or(path);
        let below = if below.as_os_str().is_empty() {
            Path::new(".")
        } else {
            below
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut opened = Err(Errno::AGAIN);
        for _ in 0..ATTEMPTS {
            opened = openat2(&self.0, below, flags | OFlags::CLOEXEC, mode, resolve);
            if !matches!(opened, Err(Errno::AGAIN)) {
                break;
            }
        }
        opened
    }

    /// Opens the directory `path`, after making what is missing of it.
    pub fn make_directories(&self, path: &Path) -> Result<OwnedFd> {
        // From the end, because most often only the last one is missing.
        let mut missing = Vec::new();
        let mut above = path.ancestors();
        let mut found = loop {
            let Some(directory) = above.next() else {
                return Err(Errno::NOENT);
            };
            match self.find(directory, OFlags::DIRECTORY) {
                Err(Errno::NOENT) => missing.push(directory),
                found => break found?,
            }
        };
        for directory in missing.into_iter().rev() {
            // None after "..", which exists once what is before it does.
            if let Some(name) = directory.file_name() {
                make_directory(&found, name)?;
            }
            found = self.find(directory, OFlags::DIRECTORY)?;
        }
        Ok(found)
    }

    /// Opens the directory that `path` is in, which is made if it is missing, and returns it with the last
    /// name.
    pub fn parent_of<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let parent = self.make_directories(path.parent().unwrap_or(Path::new("/")))?;
        Ok((parent, name))
    }

    /// Opens `path`, which is made as an empty file if it is missing.
    pub fn make_file(&self, path: &Path) -> Result<OwnedFd> {
        match self.find(path, OFlags::empty()) {
            Err(Errno::NOENT) => {}
            found => return found,
        }
        self.make_directories(path.parent().unwrap_or(Path::new("/")))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        self.open_as(path, flags, FILE_MODE)?;
        self.find(path, OFlags::NOFOLLOW)
    }
}

/// Another container of the pod may make it at the same time.
fn make_directory(parent: &OwnedFd, name: &OsStr) -> Result<()> {
    match mkdirat(parent, name, DIRECTORY_MODE) {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_missing_is_made_and_nothing_outside() {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("root");
        fs::create_dir(&root).unwrap();
        symlink("/real", root.join("link")).unwrap();
        symlink("../../..", root.join("up")).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        let tree = Tree::open(&root).unwrap();
        for (path, want) in [
            ("/a/b/c", "a/b/c"),
            ("link/d", "real/d"),
            ("/up/e/f", "e/f"),
            ("/a/../../g", "g"),
            ("/", ""),
        ] {
            tree.make_directories(Path::new(path)).unwrap();
            assert!(root.join(want).is_dir(), "{path}");
        }
        tree.make_file(Path::new("/up/x/file")).unwrap();
        tree.make_file(Path::new("/up/x/file")).unwrap();
        assert!(root.join("x/file").is_file());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        assert_eq!(
            tree.make_directories(Path::new("/x/file/y")).unwrap_err(),
            Errno::NOTDIR
        );
    }
}
