//! Forgets a container's files: the kernel caches names, attributes and pages of the shared tree, and for
//! each the VMM keeps a descriptor.

use std::io::ErrorKind;
use std::path::Path;

use nacre_protocol::container_id;
use nacre_protocol::guest::{SHARED_MOUNT, is_volume_directory};
use oci_spec::runtime::Spec;

use crate::error::Error;

/// Has the kernel mount the shared volumes of `spec` in the agent's mount namespace, of which each container's is a
/// copy. The first access in a namespace would make another file system of the same files.
///
/// # Errors
/// If a volume can't be looked up.
pub fn enter_volumes(spec: &Spec) -> Result<(), Error> {
    for mount in spec.mounts().iter().flatten() {
        let Some(below) = mount
            .source()
            .as_ref()
            .and_then(|source| source.strip_prefix(SHARED_MOUNT).ok())
        else {
            continue;
        };
        let first = below.iter().next().and_then(|name| name.to_str());
        if first.is_some_and(is_volume_directory) {
            // The "." is what makes the kernel cross into the mount.
            let inside = Path::new(SHARED_MOUNT).join(below).join(".");
            inside
                .metadata()
                .map_err(Error::file("looking up", inside.clone()))?;
        }
    }
    Ok(())
}

/// Looks the directory of container `id`, or of a shared volume, up again, which the host has removed. The kernel
/// learns so that
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
