//! A network namespace by its path: opened, checked and identified before anything enters it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use nacre_protocol::state::NetworkNamespace;
use rustix::fs::{Mode, OFlags, fstat, open, stat, statfs};

use super::Error;

/// The file system of namespaces (NSFS_MAGIC).
const NSFS: u64 = 0x6e73_6673;
/// The shim's own namespace, which is the host's.
const OWN: &str = "/proc/self/ns/net";

/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    /// Names it on disk.
    pub record: NetworkNamespace,
}

impl Namespace {
    /// Opens the network namespace at `path`.
    ///
    /// # Errors
    /// [`Error::Namespace`], also if it is the host's own.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |reason: String| Error::Namespace {
            path: path.to_owned(),
            reason,
        };
        let found = Self::find(path).map_err(|error| failed(error.to_string()))?;
        let own = stat(OWN).map_err(|error| failed(format!("{OWN}: {error}")))?;
        if (own.st_dev, own.st_ino) == (found.record.device, found.record.inode) {
            let reason = "is the host's own, which can't be shared with a guest";
            return Err(failed(reason.to_owned()));
        }
        Ok(found)
    }

    fn find(path: &Path) -> io::Result<Self> {
        // Opening a file of another kind may wait for ever.
        if u64::try_from(statfs(path)?.f_type).ok() != Some(NSFS) {
            return Err(io::Error::other("is not a network namespace"));
        }
        let file = File::from(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
        let stat = fstat(&file)?;
        let record = NetworkNamespace {
            path: path.to_owned(),
            device: stat.st_dev,
            inode: stat.st_ino,
            is_tying: false,
        };
        Ok(Self { file, record })
    }

    /// Opens the namespace that was recorded; None if it does not exist any more, or something else is at its
    /// path.
    ///
    /// # Errors
    /// If that can't be found out, with the path.
    pub fn recorded(record: &NetworkNamespace) -> Result<Option<Self>, String> {
        match Self::find(&record.path) {
            Ok(mut found) => {
                found.record.is_tying = record.is_tying;
                Ok((found.record == *record).then_some(found))
            }
            // A path into /proc of a process that has exited may be ESRCH, too.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    None | Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(format!("network namespace {}: {error}", record.path.display())),
        }
    }

    /// Its open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its path.
    pub fn path(&self) -> &PathBuf {
        &self.record.path
    }

    /// Moves the calling process, a forked child, into the namespace: EINVAL if it is one of another type.
    pub fn join(&self) -> nix::Result<()> {
        nix::sched::setns(&self.file, nix::sched::CloneFlags::CLONE_NEWNET)
    }

    /// As [`Self::join`].
    ///
    /// # Errors
    /// [`Error::Namespace`] if it is a namespace of another type.
    pub fn enter(&self) -> Result<(), Error> {
        self.join().map_err(|error| {
            let reason = if error == nix::Error::EINVAL {
                "is not a network namespace".to_owned()
            } else {
                format!("entering it: {error}")
            };
            Error::Namespace {
                path: self.path().clone(),
                reason,
            }
        })
    }
}

/// Whether the network namespace of process `pid` has a link besides the loopback device. Costs three system
/// calls.
pub fn has_links(pid: u32) -> io::Result<bool> {
    // Two lines of headings, then one line of about 120 bytes per link.
    let mut lines = [0; 1024];
    let length = File::open(format!("/proc/{pid}/net/dev"))?.read(&mut lines)?;
    let lines = lines.get(..length).unwrap_or_default();
    Ok(lines.iter().filter(|byte| **byte == b'\n').count() > 3)
}
