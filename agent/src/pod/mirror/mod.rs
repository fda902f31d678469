//! Mirrors: copies of host directories whose changes containers must notice by inotify(7), such as a ConfigMap's.
//! virtio-fs has no inotify; each mirror is a tmpfs of the guest, which the shim keeps as the host's directory is
//! by ChangeMirror. Called by `service`; knows neither the host's directory nor the containers that mount the copy.
//!
//! ```text
//! /run/nacre/mirror/N/files   the copy, which containers mount
//!                    /new     a file or link until it is complete; no container sees it
//! ```

mod operations;

use std::fs;
use std::path::{Path, PathBuf};

use nacre_protocol::agent::{ChangeMirrorRequest, ChangeMirrorResponse};
use nacre_protocol::guest::{
    MAX_MIRROR_BYTES, MAX_MIRROR_ENTRIES, MAX_MIRROR_OPERATIONS, MIRROR_FILES, MIRRORS,
};
use rustix::mount::{MountFlags, UnmountFlags, unmount};

use self::operations::Copy;
use super::tmpfs::mount_once;
use crate::error::{Error, truncate};

/// In a mirror's directory: what is being made.
const NEW: &str = "new";

/// Room of the tmpfs for a file until it is complete, and for the mirror's own directories.
const SPARE_BYTES: u64 = 1 << 20;
const SPARE_INODES: u32 = 8;

/// Carries out the operations of `request`; makes the mirror if there is none.
///
/// # Errors
/// If the mirror can't be made. An operation that fails is part of the reply.
pub fn change_mirror(request: &ChangeMirrorRequest) -> Result<ChangeMirrorResponse, Error> {
    if request.operations.len() > MAX_MIRROR_OPERATIONS {
        return Err(Error::BadRequest {
            what: format!(
                "expected at most {MAX_MIRROR_OPERATIONS} operations, got {}",
                request.operations.len()
            ),
        });
    }
    let directory = directory(request.mirror);
    make(&directory)?;
    let copy = Copy::open(&directory)?;
    let mut response = ChangeMirrorResponse::new();
    for operation in &request.operations {
        if let Err(error) = copy.apply(operation) {
            response.error = truncate(error);
            break;
        }
        response.done += 1;
    }
    Ok(response)
}

/// Removes mirror `number`. Containers that have it mounted keep its files.
///
/// # Errors
/// The kernel's reason.
pub fn remove_mirror(number: u32) -> Result<(), Error> {
    let directory = directory(number);
    match unmount(&directory, UnmountFlags::DETACH) {
        Ok(()) => fs::remove_dir(&directory).map_err(Error::file("removing", directory)),
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::file("unmounting", directory)(error)),
    }
}

fn directory(number: u32) -> PathBuf {
    Path::new(MIRRORS).join(number.to_string())
}

/// Mounts the tmpfs of a mirror on `directory`, unless that exists.
fn make(directory: &Path) -> Result<(), Error> {
    fs::create_dir_all(MIRRORS).map_err(Error::file("creating", MIRRORS))?;
    let bytes = MAX_MIRROR_BYTES * 2 + SPARE_BYTES;
    let inodes = MAX_MIRROR_ENTRIES * 2 + SPARE_INODES;
    let options = format!("mode=755,size={bytes},nr_inodes={inodes}");
    // A container's mount has the flags of its spec.
    mount_once("mirror", directory, MountFlags::empty(), &options, || {
        [MIRROR_FILES, NEW].iter().try_for_each(|name| {
            let part = directory.join(name);
            fs::create_dir(&part).map_err(Error::file("creating", part))
        })
    })
}
