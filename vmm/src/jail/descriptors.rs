//! Checks the process's open descriptors before the jail closes. Called by [`super::enter`]; closes nothing
//! itself.
//!
//! A descriptor keeps its mount: from a directory that was opened in the host's mount namespace, `..` still
//! leads to the host's root after pivot_root. Files, sockets and event descriptors have no `..`.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};
use rustix::io::Errno;

use super::{Error, step};

/// Fails if an open descriptor is a directory, unless it is the root of a detached mount, which is its own
/// parent. The root directory is its own parent, too, but is refused.
pub fn refuse_host_directories() -> Result<(), Error> {
    let root = step("stat /", stat(Path::new("/")))?;
    for entry in open_descriptors()? {
        let directory = match stat(&entry) {
            Ok(found) if is_directory(&found) => found,
            // The descriptor that read the list is closed by now.
            Ok(_) | Err(Errno::NOENT) => continue,
            Err(error) => return step("stat an open descriptor", Err(error)),
        };
        let parent = step("stat the parent of an open directory", stat(&entry.join("..")))?;
        let is_detached_root = same_file(&directory, &parent) && directory.stx_mnt_id == parent.stx_mnt_id;
        if !is_detached_root || same_file(&directory, &root) {
            return Err(Error {
                step: "no directory of the host may be open",
                reason: describe(&entry),
            });
        }
    }
    Ok(())
}

/// Paths of this process's descriptors in /proc/self/fd.
fn open_descriptors() -> Result<Vec<PathBuf>, Error> {
    let listing = "list /proc/self/fd";
    let mut paths = Vec::new();
    for entry in step(listing, fs::read_dir("/proc/self/fd"))? {
        paths.push(step(listing, entry)?.path());
    }
    Ok(paths)
}

/// statx that follows symbolic links, among them those in /proc/self/fd.
fn stat(path: &Path) -> rustix::io::Result<Statx> {
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

/// The text of the error for the descriptor at `entry`, such as "/proc/self/fd/7".
fn describe(entry: &Path) -> String {
    let number = entry.file_name().unwrap_or_default().display();
    let target = fs::read_link(entry).unwrap_or_default();
    format!(
        "descriptor {number} is {}, and the host's files can be reached from it; close it before the VMM starts",
        target.display()
    )
}
