//! The pod's /dev/shm: one tmpfs of the guest, which its containers share as they share their IPC namespace.
//! Mounted for the first container that has it, and kept as long as the guest.

use std::path::Path;

use nacre_protocol::guest::POD_SHM;
use rustix::mount::MountFlags;

use super::tmpfs::mount_once;
use crate::error::Error;

/// Mounts it with room for `bytes`, unless it is mounted. The size is the pod's: that of the first call stays.
pub fn mount_shm(bytes: u64) -> Result<(), Error> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = format!("mode=1777,size={bytes}");
    mount_once("shm", Path::new(POD_SHM), flags, &options, || Ok(()))
}
