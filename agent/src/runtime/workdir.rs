//! Creates a container's working directory if the image does not have it, as runc does; libcontainer only
//! looks for it. Done by the helper, never by the agent: a host file system that hangs must not stop the
//! agent's event loop.

use std::error::Error;
use std::fs::Permissions;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use pathrs::Root;
use pathrs::flags::OpenFlags;
use rustix::fs::{FileType, Gid, Uid};

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
    if !directory.tree.is_dir() {
        // A bind mount of a file, or of a missing source: libcontainer's error names it.
        return Ok(());
    }
    let tree = Root::open(&directory.tree).map_err(|error| reason(&error))?;
    if let Ok(found) = tree.resolve(&directory.path) {
        let stat = rustix::fs::fstat(&found).map_err(|error| reason(&error))?;
        return if FileType::from_raw_mode(stat.st_mode).is_dir() {
            Ok(())
        } else {
            let path = Path::new("/").join(&directory.path);
            Err(format!("{}: not a directory", path.display()))
        };
    }
    let created = tree
        .mkdir_all(&directory.path, &Permissions::from_mode(0o755))
        .map_err(|error| reason(&error))?;
    if directory.owner != 0 {
        let created = created
            .reopen(OpenFlags::O_DIRECTORY)
            .map_err(|error| reason(&error))?;
        let (uid, gid) = (Uid::from_raw(directory.owner), Gid::from_raw(directory.owner));
        rustix::fs::fchown(created.as_fd(), Some(uid), Some(gid)).map_err(|error| reason(&error))?;
    }
    Ok(())
}

fn reason(error: &dyn Error) -> String {
    let cause = error.source().map(|cause| format!(": {cause}"));
    format!("creating the directory: {error}{}", cause.unwrap_or_default())
}
