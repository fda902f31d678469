//! The mount option `tmpcopyup`: copies a directory into a new tmpfs that will cover it. Called by the child that
//! becomes the init, so that a file system that hangs stops only its container. Never follows a symbolic link.
//!
//! As with runc, a copy has the content, owner, group and mode of its file, and mounts below the directory are copied,
//! too. Times, extended attributes and hard links are not, and the tmpfs keeps its own owner and mode.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, ResolveFlags, Uid, chmodat, chownat, mkdirat, mknodat,
    openat, openat2, readlinkat, statat, symlinkat,
};
use rustix::io::Errno;

/// Bytes of names that are read from a directory at once.
const LISTING: usize = 32 << 10;
/// Mode of a file until it is complete.
const INCOMPLETE: Mode = Mode::RWXU;

/// Copies what is in the directory `from` to the directory `to`, which is empty and which no other process can reach.
/// The size of the tmpfs bounds the copy, its number of inodes the directories that wait, and PATH_MAX their depth.
///
/// # Errors
/// The path that can't be copied, and why. What was copied until then is left.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), String> {
    let mut buffer = [MaybeUninit::uninit(); LISTING];
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let directory = Directory::open(from, to, &path).map_err(failed(&path))?;
        let mut names = RawDir::new(&directory.from, &mut buffer);
        while let Some(entry) = names.next() {
            let entry = entry.map_err(failed(&path))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let below = path.join(OsStr::from_bytes(name.to_bytes()));
            let kind = directory.copy_entry(name).map_err(failed(&below))?;
            if kind == FileType::Directory {
                waiting.push(below);
            }
        }
    }
    Ok(())
}

fn failed<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> String {
    move |error| format!("copying /{}: {}", path.display(), error.into())
}

/// A directory and its copy.
struct Directory {
    from: OwnedFd,
    to: OwnedFd,
}

impl Directory {
    /// The directory `path` of `from`, and that of `to`.
    fn open(from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<Self> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(Self {
            from: openat2(from, path, flags, Mode::empty(), resolve)?,
            to: openat2(to, path, flags, Mode::empty(), resolve)?,
        })
    }

    /// Copies the file `name`, or makes the directory `name`.
    fn copy_entry(&self, name: &CStr) -> io::Result<FileType> {
        let stat = statat(&self.from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::Directory => mkdirat(&self.to, name, INCOMPLETE)?,
            FileType::RegularFile => self.copy_content(name)?,
            FileType::Symlink => {
                let target = readlinkat(&self.from, name, Vec::new())?;
                symlinkat(&target, &self.to, name)?;
            }
            // runc copies none of these but block devices, and fails.
            FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
                mknodat(&self.to, name, kind, INCOMPLETE, stat.st_rdev)?;
            }
            FileType::Unknown => return Err(Errno::INVAL.into()),
        }
        let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        chownat(&self.to, name, Some(owner.0), Some(owner.1), nofollow)?;
        if kind != FileType::Symlink {
            // After the owner, whose change takes set-user-ID away.
            let mode = Mode::from_raw_mode(stat.st_mode);
            chmodat(&self.to, name, mode, AtFlags::empty())?;
        }
        Ok(kind)
    }

    fn copy_content(&self, name: &CStr) -> io::Result<()> {
        // Another process may put a link or a named pipe in its place.
        let careful = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let from = openat(&self.from, name, OFlags::RDONLY | careful, Mode::empty())?;
        let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let to = openat(&self.to, name, new, INCOMPLETE)?;
        io::copy(&mut File::from(from), &mut File::from(to))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    struct Pair(tempfile::TempDir);

    impl Pair {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir(directory.path().join("from")).unwrap();
            fs::create_dir(directory.path().join("to")).unwrap();
            Self(directory)
        }

        fn from(&self, path: &str) -> PathBuf {
            self.0.path().join("from").join(path)
        }

        fn to(&self, path: &str) -> PathBuf {
            self.0.path().join("to").join(path)
        }

        fn copy(&self) -> Result<(), String> {
            let (from, to) = (File::open(self.from("")), File::open(self.to("")));
            copy(from.unwrap().as_fd(), to.unwrap().as_fd())
        }
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn content_and_modes_are_copied() {
        let pair = Pair::new();
        fs::create_dir_all(pair.from("a/b")).unwrap();
        fs::write(pair.from("a/b/file"), [7; 100_000]).unwrap();
        fs::write(pair.from("empty"), "").unwrap();
        UnixListener::bind(pair.from("socket")).unwrap();
        mknodat(rustix::fs::CWD, pair.from("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let modes = [
            ("a", 0o1777),
            ("a/b", 0o2770),
            ("a/b/file", 0o4751),
            ("empty", 0o400),
            ("pipe", 0o622),
            ("socket", 0o755),
        ];
        for (path, mode) in modes {
            set_mode(&pair.from(path), mode);
        }
        set_mode(&pair.from(""), 0o700);
        set_mode(&pair.to(""), 0o750);
        pair.copy().unwrap();
        assert_eq!(fs::read(pair.to("a/b/file")).unwrap(), [7; 100_000]);
        for (path, _) in modes {
            let mode = |path: PathBuf| fs::symlink_metadata(path).unwrap().mode();
            assert_eq!(mode(pair.to(path)), mode(pair.from(path)), "{path}");
        }
        assert_eq!(fs::metadata(pair.to("")).unwrap().mode() & 0o777, 0o750);
    }

    #[test]
    fn links_are_copied_and_not_followed() {
        let pair = Pair::new();
        fs::write(pair.0.path().join("outside"), "x").unwrap();
        for (name, target) in [("up", "../outside"), ("nowhere", "/no/where"), ("loop", ".")] {
            symlink(target, pair.from(name)).unwrap();
        }
        fs::write(pair.from("one"), "1").unwrap();
        fs::hard_link(pair.from("one"), pair.from("two")).unwrap();
        pair.copy().unwrap();
        for (name, target) in [("up", "../outside"), ("nowhere", "/no/where"), ("loop", ".")] {
            assert_eq!(fs::read_link(pair.to(name)).unwrap(), Path::new(target));
        }
        assert_eq!(fs::metadata(pair.to("one")).unwrap().nlink(), 1);
        assert_eq!(fs::read(pair.to("two")).unwrap(), b"1");
    }

    #[test]
    fn owners_are_copied() {
        if !rustix::process::getuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let pair = Pair::new();
        fs::write(pair.from("file"), "").unwrap();
        symlink("x", pair.from("link")).unwrap();
        fs::create_dir(pair.from("directory")).unwrap();
        for (name, uid) in [("file", 1000), ("link", 1001), ("directory", 1002)] {
            std::os::unix::fs::lchown(pair.from(name), Some(uid), Some(uid + 10)).unwrap();
        }
        std::os::unix::fs::lchown(pair.from(""), Some(5), Some(5)).unwrap();
        set_mode(&pair.from("file"), 0o6755);
        pair.copy().unwrap();
        for (name, uid) in [("file", 1000), ("link", 1001), ("directory", 1002), ("", 0)] {
            let copied = fs::symlink_metadata(pair.to(name)).unwrap();
            let group = if uid == 0 { 0 } else { uid + 10 };
            assert_eq!((copied.uid(), copied.gid()), (uid, group), "{name}");
        }
        assert_eq!(fs::metadata(pair.to("file")).unwrap().mode() & 0o7777, 0o6755);
    }

    #[test]
    fn many_and_deep_directories_are_copied() {
        let pair = Pair::new();
        let deep = "d/".repeat(300);
        fs::create_dir_all(pair.from(&deep)).unwrap();
        for number in 0..2000 {
            fs::write(pair.from(&format!("d/a-name-that-fills-the-buffer-{number}")), "").unwrap();
        }
        pair.copy().unwrap();
        assert!(pair.to(&deep).is_dir());
        assert_eq!(fs::read_dir(pair.to("d")).unwrap().count(), 2001);
    }

    #[test]
    fn the_path_that_fails_is_named() {
        let pair = Pair::new();
        fs::create_dir(pair.from("a")).unwrap();
        fs::create_dir(pair.to("a")).unwrap();
        assert_eq!(pair.copy().unwrap_err(), "copying /a: File exists (os error 17)");
    }
}
