//! Checks the process's open descriptors before the jail closes. Called by [`super::enter`]; closes nothing itself.
//!
//! A descriptor keeps its mount: a directory that was opened in the host's mount namespace still leads to the host's
//! root by `..` after pivot_root. Files, sockets and event descriptors have no `..`.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};
use rustix::io::Errno;

use super::{Error, step};

/// Fails if a descriptor of this process is a directory from which `..` leads anywhere, or the root directory. The
/// root of a detached mount is fine: its parent is itself.
pub fn refuse_host_directories() -> Result<(), Error> {
    let root = step("statx of /", look(Path::new("/")))?;
    for entry in open_descriptors()? {
        let directory = match look(&entry) {
            Ok(found) if is_directory(&found) => found,
            // The descriptor by which the list was read is closed by now.
            Ok(_) | Err(Errno::NOENT) => continue,
            Err(error) => return step("statx of an open descriptor", Err(error)),
        };
        let parent = step("statx of an open directory's parent", look(&entry.join("..")))?;
        let is_detached_root = same_file(&directory, &parent) && directory.stx_mnt_id == parent.stx_mnt_id;
        if !is_detached_root || same_file(&directory, &root) {
            return Err(Error {
                step: "a directory of the host is open",
                reason: describe(&entry),
            });
        }
    }
    Ok(())
}

/// Paths of this process's descriptors in /proc/self/fd.
fn open_descriptors() -> Result<Vec<PathBuf>, Error> {
    let listing = "listing /proc/self/fd";
    let mut paths = Vec::new();
    for entry in step(listing, fs::read_dir("/proc/self/fd"))? {
        paths.push(step(listing, entry)?.path());
    }
    Ok(paths)
}

/// Follows the link that `path` may be.
fn look(path: &Path) -> rustix::io::Result<Statx> {
    statx(
        CWD,
        path,
        AtFlags::empty(),
        StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID,
    )
}

fn is_directory(found: &Statx) -> bool {
    FileType::from_raw_mode(found.stx_mode.into()) == FileType::Directory
}

fn same_file(a: &Statx, b: &Statx) -> bool {
    (a.stx_dev_major, a.stx_dev_minor, a.stx_ino) == (b.stx_dev_major, b.stx_dev_minor, b.stx_ino)
}

fn describe(entry: &Path) -> String {
    let number = entry.file_name().unwrap_or_default().display();
    let target = fs::read_link(entry).unwrap_or_default();
    format!(
        "descriptor {number} is {}, from where the host's files can be reached; close it before the VMM starts",
        target.display()
    )
}
