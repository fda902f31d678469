//! Creates a container's working directory if the image does not have it, as runc does. Done by a child of
//! the agent, never by the agent: a host file system that hangs must not stop the agent's event loop.

use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Gid, OFlags, Uid};
use rustix::io::Errno;

use super::tree::Tree;

/// A working directory to create if it is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkingDirectory {
    /// The directory that `path` is below: the container's root, or the source of a bind mount.
    pub tree: PathBuf,
    /// The path in `tree`.
    pub path: PathBuf,
    /// The owner of a directory that is created: the container's root user, as the guest numbers users.
    pub owner: u32,
}

/// Creates `directory` with its missing parents. Symbolic links are resolved inside its tree.
///
/// # Errors
/// The reason why `process.cwd` cannot be used.
pub fn create(directory: &WorkingDirectory) -> Result<(), String> {
    let failed = |error: Errno| format!("creating the directory: {error}");
    if directory.path.as_os_str().is_empty() || !directory.tree.is_dir() {
        // There already; or a bind mount of a file, or of a missing source, whose error names it.
        return Ok(());
    }
    let tree = Tree::open(&directory.tree).map_err(failed)?;
    if let Ok(found) = tree.find(&directory.path, OFlags::empty()) {
        let stat = rustix::fs::fstat(&found).map_err(failed)?;
        return if FileType::from_raw_mode(stat.st_mode).is_dir() {
            Ok(())
        } else {
            let path = Path::new("/").join(&directory.path);
            Err(format!("{}: not a directory", path.display()))
        };
    }
    tree.make_directories(&directory.path).map_err(failed)?;
    if directory.owner != 0 {
        let (uid, gid) = (Uid::from_raw(directory.owner), Gid::from_raw(directory.owner));
        let created = tree.find_to_read(&directory.path).map_err(failed)?;
        rustix::fs::fchown(&created, Some(uid), Some(gid)).map_err(failed)?;
    }
    Ok(())
}
