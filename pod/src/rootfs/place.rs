//! Moves detached mounts to where the guest finds them: a forked helper enters the VMM's mount namespace, whose root is
//! the tree that the guest sees, and ends.

use std::os::fd::AsFd;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, move_mount};

use super::{Error, Placement};
use crate::sys;

/// Moves `placements` into the mount namespace of the process behind `vmm` (a pidfd).
///
/// # Errors
/// [`Error`] with the place.
pub fn place(vmm: impl AsFd, placements: &[Placement]) -> Result<(), Error> {
    let vmm = vmm.as_fd();
    sys::in_child(|| {
        let host = root()?;
        setns(vmm, CloneFlags::CLONE_NEWNS).map_err(|error| format!("setns: {error}"))?;
        // The mounts would be the host's, for good.
        if root()? == host {
            return Err("the VMM has not left the host's mount namespace".to_owned());
        }
        placements.iter().try_for_each(|placement| {
            put(placement).map_err(|error| format!("/{}: {error}", placement.target.display()))
        })
    })
    .map_err(Error::Child)?
    .map_err(Error::Place)
}

/// What names the root directory: its device and inode.
fn root() -> Result<(u64, u64), String> {
    let root = rustix::fs::stat("/").map_err(|error| format!("stat of /: {error}"))?;
    Ok((root.st_dev, root.st_ino))
}

fn put(placement: &Placement) -> std::io::Result<()> {
    let target = Path::new("/").join(&placement.target);
    if placement.is_directory {
        std::fs::create_dir_all(&target)?;
    } else {
        std::fs::create_dir_all(target.parent().unwrap_or(Path::new("/")))?;
        rustix::fs::open(
            &target,
            OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::from(0o644),
        )?;
    }
    for mount in &placement.mounts {
        move_mount(mount, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn nothing_is_moved_into_the_hosts_own_namespace() {
        if !rustix::process::getuid().is_root() {
            // Not println!, which the test harness hides if a test passes.
            let _ = writeln!(
                std::io::stderr(),
                "skipped: entering a mount namespace needs root"
            );
            return;
        }
        let target = format!("nacre-test-{}", std::process::id());
        let placement = Placement {
            target: target.clone().into(),
            is_directory: true,
            mounts: Vec::new(),
        };
        let own =
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
        let error = place(own.unwrap(), &[placement]).unwrap_err();
        assert!(error.to_string().contains("mount namespace"), "{error}");
        assert!(!Path::new("/").join(target).exists());
    }
}
