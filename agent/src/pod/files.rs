//! Forgets a container's files: the kernel caches names, attributes and pages of the shared tree, and for
//! each the VMM keeps a descriptor.
//!
//! A lookup in the shared tree waits as long as the VMM's file server, whose host file system may hang: a child makes it.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nacre_protocol::container_id;
use nacre_protocol::guest::{SHARED_MOUNT, is_volume_directory};
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{AtFlags, CWD, statat};

use crate::error::Error;
use crate::slow_call::SlowCall;

/// Has the kernel mount the shared volumes of `spec` in the agent's mount namespace, of which each container's is a
/// copy. The first access in a namespace would make another file system of the same files.
///
/// # Errors
/// If a volume can't be looked up.
pub async fn enter_volumes(spec: &Spec) -> Result<(), Error> {
    let mounts = spec.mounts().iter().flatten();
    let volumes: Vec<PathBuf> = mounts.filter_map(inside_volume).collect();
    if volumes.is_empty() {
        return Ok(());
    }
    let paths: Vec<CString> = volumes.iter().map(|path| c_string(path)).collect();
    let looked_up = SlowCall::run([], || paths.iter().try_for_each(look_up)).await;
    looked_up.map_err(|source| {
        let names: Vec<_> = volumes.iter().map(|path| path.to_string_lossy()).collect();
        Error::System {
            what: format!("looking up the shared volumes {}", names.join(", ")),
            source,
        }
    })
}

/// The path of the shared volume that `mount` binds, or of a directory or file in one. The "." at its end is what makes
/// the kernel cross into the volume.
fn inside_volume(mount: &Mount) -> Option<PathBuf> {
    let below = mount.source().as_ref()?.strip_prefix(SHARED_MOUNT).ok()?;
    let first = below.iter().next()?.to_str()?;
    is_volume_directory(first).then(|| Path::new(SHARED_MOUNT).join(below).join("."))
}

/// Looks the directory of container `id`, or of a shared volume, up again, which the host has removed. The kernel
/// learns so that nothing below it exists any more: it unmounts the container's file systems in every mount
/// namespace, drops what it has cached of them, and tells the VMM.
///
/// # Errors
/// If the directory is still there.
pub async fn forget(id: &str) -> Result<(), Error> {
    if !container_id::is_valid(id) && !is_volume_directory(id) {
        return Err(Error::bad_id(id));
    }
    let directory = Path::new(SHARED_MOUNT).join(id);
    let path = c_string(&directory);
    match SlowCall::run([], || look_up(&path)).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::file("looking up", directory)(error)),
        Ok(()) => Err(Error::BadRequest {
            what: format!("{}: the host has not removed it", directory.display()),
        }),
    }
}

/// A source with a NUL can't be a path, and is not found.
fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

/// Allocates nothing.
fn look_up(path: &CString) -> io::Result<()> {
    statat(CWD, path.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}
