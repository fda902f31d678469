//! The file system of the host's store: a tmpfs of its own, since only one that is mounted with `huge=advise` has the
//! huge pages in which the VMM stores what a guest reads (vmm/src/snapshot/huge_pages.rs). It is mounted when a template
//! is made and stays, like the templates, until the host boots again or an operator unmounts it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::mount::{MountFlags, mount};

/// As /proc/self/mounts shows it.
const SOURCE: &str = "nacre-templates";
/// Documentation/filesystems/tmpfs.rst. Its default size is half of the host's memory.
const OPTIONS: &std::ffi::CStr = c"mode=0700,huge=advise";

/// Mounts one on the directory `store`, which is open as `directory`, unless it is a mount point or has files.
///
/// # Errors
/// The error of stat(2), flock(2), opendir(3) or mount(2), such as EINVAL if the host has no transparent huge pages.
pub(super) fn provide(store: &Path, directory: &OwnedFd) -> io::Result<()> {
    // Whoever waits for the lock finds what was mounted meanwhile.
    flock(directory, FlockOperation::LockExclusive)?;
    if is_mount_point(store)? || fs::read_dir(store)?.next().is_some() {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount(SOURCE, store, "tmpfs", flags, OPTIONS)?)
}

/// Whether another file system is mounted at `path` than its parent is of.
pub(super) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(path);
    Ok(fs::symlink_metadata(path)?.dev() != fs::symlink_metadata(parent)?.dev())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::mount::{MntFlags, umount2};

    use super::*;

    #[test]
    fn an_empty_directory_gets_a_file_system_once() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounting a tmpfs needs root");
            return;
        }
        let parent = tempfile::tempdir().unwrap();
        let store = parent.path().join("templates");
        fs::create_dir(&store).unwrap();
        let open = || OwnedFd::from(File::open(&store).unwrap());
        fs::write(store.join("of an older version"), "").unwrap();
        provide(&store, &open()).unwrap();
        assert!(!is_mount_point(&store).unwrap(), "its files would be hidden");
        fs::remove_file(store.join("of an older version")).unwrap();
        let (first, second) = (open(), open());
        provide(&store, &first).unwrap();
        assert!(is_mount_point(&store).unwrap());
        assert_eq!(fs::metadata(&store).unwrap().mode() & 0o7777, 0o700);
        drop(first);
        // It opened the directory below the mount.
        provide(&store, &second).unwrap();
        umount2(&store, MntFlags::empty()).unwrap();
        assert!(!is_mount_point(&store).unwrap(), "it was mounted twice");
    }
}
