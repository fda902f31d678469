//! A file system that a test mounts on the host for a container's volume.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, umount2};

use crate::containerd::ctr::output;

/// A mount on a directory of its own; unmounted and removed on drop.
pub struct HostMount(PathBuf);

impl HostMount {
    /// Makes `target` and mounts on it with these arguments of mount(8).
    ///
    /// # Errors
    /// If the directory exists, or mount fails.
    pub fn new(arguments: &[&str], target: &Path) -> Result<Self> {
        fs::create_dir(target)?;
        let mut mount = Command::new("mount");
        mount.args(arguments).arg(target);
        output(mount)?.success().context("mount")?;
        Ok(Self(target.to_owned()))
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let unmounted = umount2(&self.0, MntFlags::MNT_DETACH);
        let removed = unmounted
            .map_err(std::io::Error::from)
            .and_then(|()| fs::remove_dir(&self.0));
        if let Err(error) = removed {
            eprintln!("removing {}: {error}", self.0.display());
        }
    }
}
