//! A tmpfs of the pod, which is mounted when it is first needed. Called by `shm` and `mirror`.

use std::ffi::CString;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::error::Error;

/// Mounts a tmpfs called `name` on `directory`, which is made, and has `fill` complete it; nothing if the directory
/// exists. If a step fails, neither is left.
///
/// # Errors
/// That of the step.
pub fn mount_once(
    name: &str,
    directory: &Path,
    flags: MountFlags,
    options: &str,
    fill: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    match fs::create_dir(directory) {
        Ok(()) => {}
        // Made together with the mount below.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(Error::file("creating", directory)(error)),
    }
    let data = CString::new(options).unwrap_or_default();
    mount(name, directory, "tmpfs", flags, Some(&*data))
        .map_err(Error::system(format!(
            "mounting a tmpfs with {options} on {}",
            directory.display()
        )))
        .and_then(|()| fill())
        .inspect_err(|_| {
            // So that the next call tries again. The original error is returned.
            let _ = unmount(directory, UnmountFlags::DETACH);
            let _ = fs::remove_dir(directory);
        })
}
