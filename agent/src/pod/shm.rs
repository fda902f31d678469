//! The pod's /dev/shm: one tmpfs of the guest, which its containers share as they share their IPC namespace.
//! Mounted for the first container that has it, and kept as long as the guest.

use std::ffi::CString;
use std::fs;

use nacre_protocol::guest::POD_SHM;
use rustix::mount::{MountFlags, mount};

use crate::error::Error;

/// Mounts it with room for `bytes`, unless it is mounted. The size is the pod's: that of the first call stays.
pub fn mount_shm(bytes: u64) -> Result<(), Error> {
    match fs::create_dir(POD_SHM) {
        Ok(()) => {}
        // Made together with the mount below.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(Error::file("creating", POD_SHM)(error)),
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = CString::new(format!("mode=1777,size={bytes}")).unwrap_or_default();
    mount("shm", POD_SHM, "tmpfs", flags, Some(&*options))
        .inspect_err(|_| {
            // So that the next container tries again. The original error is returned.
            let _ = fs::remove_dir(POD_SHM);
        })
        .map_err(Error::system(format!(
            "mounting a tmpfs of {bytes} bytes on {POD_SHM}"
        )))
}
