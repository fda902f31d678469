//! The operations on a mirror's files. Each path is resolved below the mirror's root without following a symbolic
//! link, and a file or link gets its name only when it is complete.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path};

use nacre_protocol::agent::mirror_operation::Operation;
use nacre_protocol::agent::{FileAttributes, MirrorOperation, WriteFile};
use nacre_protocol::guest::{MAX_MIRROR_PATH, MIRROR_FILES};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat, fchmod, fchown,
    fstat, futimens, linkat, mkdirat, openat, openat2, renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::NEW;
use crate::error::Error;

/// The name of a file or link until it is complete.
const INCOMPLETE: &str = "incomplete";
/// Most characters of a path that an error repeats.
const MAX_QUOTED: usize = 256;
/// The bits of [`FileAttributes`]' mode that are set.
const MODE_BITS: u32 = 0o7777;

/// The directories of a mirror.
pub struct Copy {
    files: OwnedFd,
    new: OwnedFd,
}

impl Copy {
    /// The mirror at `directory`.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let open = |name| {
            let path = directory.join(name);
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::open(&path, flags, Mode::empty()).map_err(Error::file("opening", path))
        };
        Ok(Self {
            files: open(MIRROR_FILES)?,
            new: open(NEW)?,
        })
    }

    /// Carries out one operation. The error names it and its path.
    pub fn apply(&self, operation: &MirrorOperation) -> Result<(), String> {
        let Some(operation) = &operation.operation else {
            return Err("the operation is missing".into());
        };
        // The generated enum is non-exhaustive.
        #[allow(clippy::wildcard_enum_match_arm, reason = "a variant of another build")]
        let (name, path, result) = match operation {
            Operation::MakeDirectory(make) => {
                let made = self.make_directory(&make.path, make.attributes.get_or_default());
                ("making directory", &make.path, made)
            }
            Operation::WriteFile(write) => ("writing", &write.path, self.write(write)),
            Operation::MakeSymlink(link) => {
                let owner = link.attributes.get_or_default();
                let made = self.make_symlink(&link.path, &link.target, owner);
                ("making symbolic link", &link.path, made)
            }
            Operation::SetAttributes(set) => {
                let changed = self.set_attributes(&set.path, set.attributes.get_or_default());
                ("setting the attributes of", &set.path, changed)
            }
            Operation::Rename(rename) => ("renaming", &rename.from, self.rename(&rename.from, &rename.to)),
            Operation::Remove(remove) => ("removing", &remove.path, self.remove(&remove.path)),
            _ => return Err("an unknown operation".into()),
        };
        result.map_err(|error| {
            let quoted: String = String::from_utf8_lossy(path).chars().take(MAX_QUOTED).collect();
            format!("{name} {quoted:?}: {error}")
        })
    }

    fn make_directory(&self, path: &[u8], attributes: &FileAttributes) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        match mkdirat(&parent, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) if is_directory(&parent, name) => {}
            Err(error) => return Err(error.into()),
        }
        self.set_attributes(path, attributes)
    }

    /// Appends a part to the incomplete file; the last one completes it.
    fn write(&self, write: &WriteFile) -> io::Result<()> {
        let (parent, name) = self.parent(&write.path)?;
        if write.offset == 0 {
            self.discard_incomplete()?;
        }
        let mut flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if write.offset == 0 {
            flags |= OFlags::CREATE | OFlags::EXCL;
        }
        let file = File::from(openat(&self.new, INCOMPLETE, flags, Mode::RUSR | Mode::WUSR)?);
        let size = file.metadata()?.len();
        if size != write.offset {
            return Err(invalid(format!(
                "a part begins at {}, and the file has {size} bytes",
                write.offset
            )));
        }
        file.write_all_at(&write.content, write.offset)?;
        let Some(attributes) = write.attributes.as_ref() else {
            return Ok(());
        };
        set_file_attributes(&file, attributes)?;
        self.publish(&parent, name)
    }

    fn make_symlink(&self, path: &[u8], target: &[u8], owner: &FileAttributes) -> io::Result<()> {
        if target.is_empty() || target.len() > MAX_MIRROR_PATH {
            return Err(invalid(format!(
                "expected a target of 1 to {MAX_MIRROR_PATH} bytes, got {}",
                target.len()
            )));
        }
        let (parent, name) = self.parent(path)?;
        self.discard_incomplete()?;
        symlinkat(OsStr::from_bytes(target), &self.new, INCOMPLETE)?;
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        chownat(
            &self.new,
            INCOMPLETE,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        self.publish(&parent, name)
    }

    /// Gives the incomplete file its name. A new name appears as one that is made there: containers get IN_CREATE,
    /// as on the host. A name that exists is replaced at once (IN_MOVED_TO).
    fn publish(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        match linkat(&self.new, INCOMPLETE, parent, name, AtFlags::empty()) {
            Ok(()) => self.discard_incomplete(),
            Err(Errno::EXIST) => Ok(renameat(&self.new, INCOMPLETE, parent, name)?),
            Err(error) => Err(error.into()),
        }
    }

    fn discard_incomplete(&self) -> io::Result<()> {
        match unlinkat(&self.new, INCOMPLETE, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn set_attributes(&self, path: &[u8], attributes: &FileAttributes) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = if path.is_empty() {
            self.files.try_clone()?
        } else {
            let (parent, name) = self.parent(path)?;
            openat(&parent, name, flags, Mode::empty())?
        };
        set_file_attributes(&opened, attributes)
    }

    fn rename(&self, from: &[u8], to: &[u8]) -> io::Result<()> {
        let (old, old_name) = self.parent(from)?;
        let (new, new_name) = self.parent(to)?;
        Ok(renameat(&old, old_name, &new, new_name)?)
    }

    fn remove(&self, path: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let flags = if is_directory(&parent, name) {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        match unlinkat(&parent, name, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory that `path` is in, and its name there.
    fn parent<'p>(&self, path: &'p [u8]) -> io::Result<(OwnedFd, &'p OsStr)> {
        let path = Path::new(OsStr::from_bytes(path));
        let is_plain = |component| matches!(component, Component::Normal(_));
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(invalid("not the path of a file".into()));
        };
        if path.as_os_str().len() > MAX_MIRROR_PATH || !path.components().all(is_plain) {
            return Err(invalid("not a path below the mirror's root".into()));
        }
        if parent.as_os_str().is_empty() {
            return Ok((self.files.try_clone()?, name));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        Ok((openat2(&self.files, parent, flags, Mode::empty(), resolve)?, name))
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

/// False also if it can't be looked up: the operation then fails with the reason.
fn is_directory(parent: &OwnedFd, name: &OsStr) -> bool {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// Sets owner, mode and, of a file, the modification time; the owner first, because chown(2) clears
/// set-user-ID bits.
fn set_file_attributes(file: &impl AsFd, attributes: &FileAttributes) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    fchown(file, Some(uid), Some(gid))?;
    fchmod(file, Mode::from_raw_mode(attributes.mode & MODE_BITS))?;
    let mode = fstat(file)?.st_mode;
    if rustix::fs::FileType::from_raw_mode(mode).is_dir() {
        return Ok(());
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: attributes.mtime_s,
            tv_nsec: attributes.mtime_ns.into(),
        },
    };
    Ok(futimens(file, &times)?)
}

#[cfg(test)]
mod tests;
