//! What libcontainer leaves undone of a container's mounts: how they share what is mounted below. Done in the container's
//! mount namespace, by the helper, which does nothing else after it; no program of the container runs yet.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::spec::Later;

/// Does what `mounts` say in the mount namespace of process `pid`, whose root becomes the caller's.
pub fn finish(pid: i32, mounts: &[Later]) -> Result<(), String> {
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
        mount.propagation.iter().try_for_each(|word| {
            let done = propagation(word).and_then(|flags| Ok(mount_change(&path, flags)?));
            done.map_err(|error| format!("mounts: {word} on {}: {error}", path.display()))
        })
    })
}

fn propagation(word: &str) -> io::Result<MountPropagationFlags> {
    use MountPropagationFlags as Flags;
    let (plain, recursive) = match word.strip_prefix('r') {
        Some(plain) => (plain, Flags::REC),
        None => (word, Flags::empty()),
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
