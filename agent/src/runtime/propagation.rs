//! Sets the propagation types of a container's mounts (mount_namespaces(7)), which libcontainer does not. The
//! helper does this in the container's mount namespace, as its last step and before any program of the
//! container runs.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::spec::MountPropagation;

/// Applies `mounts` in the mount namespace of process `pid`. The caller stays in that namespace, with its
/// root directory.
pub fn apply(pid: i32, mounts: &[MountPropagation]) -> Result<(), String> {
    if mounts.is_empty() {
        return Ok(());
    }
    let file = format!("/proc/{pid}/ns/mnt");
    File::open(&file)
        .and_then(|namespace| {
            Ok(move_into_link_name_space(
                namespace.as_fd(),
                Some(LinkNameSpaceType::Mount),
            )?)
        })
        .map_err(|error| format!("entering {file}: {error}"))?;
    mounts.iter().try_for_each(|mount| {
        let path = Path::new("/").join(&mount.destination);
        mount.options.iter().try_for_each(|option| {
            let done = flags(option).and_then(|flags| Ok(mount_change(&path, flags)?));
            done.map_err(|error| format!("mounts: making {} {option}: {error}", path.display()))
        })
    })
}

fn flags(option: &str) -> io::Result<MountPropagationFlags> {
    use MountPropagationFlags as Flags;
    let (plain, recursive) = match option.strip_prefix('r') {
        Some(plain) => (plain, Flags::REC),
        None => (option, Flags::empty()),
    };
    let kind = match plain {
        "private" => Flags::PRIVATE,
        "shared" => Flags::SHARED,
        "slave" => Flags::DOWNSTREAM,
        "unbindable" => Flags::UNBINDABLE,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    Ok(kind | recursive)
}
