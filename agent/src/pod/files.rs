//! Forgets a container's files: the kernel caches names, attributes and pages of the shared tree, and for
//! each the VMM keeps a descriptor.

use std::io::ErrorKind;
use std::path::Path;

use nacre_protocol::container_id;
use nacre_protocol::guest::{SHARED_MOUNT, is_volume_directory};

use crate::error::Error;

/// Looks the directory of container `id`, or of a shared volume, up again, which the host has removed. The kernel learns so that
/// nothing below it exists any more: it unmounts the container's file systems in every mount namespace, drops
/// what it has cached of them, and tells the VMM.
///
/// # Errors
/// If the directory is still there.
pub fn forget(id: &str) -> Result<(), Error> {
    if !container_id::is_valid(id) && !is_volume_directory(id) {
        return Err(Error::bad_id(id));
    }
    let directory = Path::new(SHARED_MOUNT).join(id);
    match directory.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::file("looking up", directory)(error)),
        Ok(_) => Err(Error::BadRequest {
            what: format!("{}: the host has not removed it", directory.display()),
        }),
    }
}
