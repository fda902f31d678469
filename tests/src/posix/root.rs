//! The places whose file systems are compared: a container's root file system, and an ext4 that is
//! bind-mounted into it. Called by `nacre-posix`.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::containerd::ctr::output;
use crate::loop_device::load_module;

/// Bytes of a volume. Its image is sparse.
const VOLUME_BYTES: u64 = 256 << 20;

/// Options of mkfs.ext4, so that no thread of the kernel writes to the file system after it was mounted.
pub const INITIALISED: [&str; 2] = ["-E", "lazy_itable_init=0,lazy_journal_init=0"];

/// Name of the mount point in a volume's directory.
const MOUNTED: &str = "mounted";

/// A place in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The snapshot of the snapshotter: overlayfs, on the file system of containerd's state.
    Rootfs,
    /// An ext4 of the host.
    Volume,
}

impl Place {
    /// All places.
    pub const ALL: [Self; 2] = [Self::Rootfs, Self::Volume];

    /// The word for it in names and output.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rootfs => "rootfs",
            Self::Volume => "volume",
        }
    }

    /// The directory in a container. Only the volume's exists beforehand.
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Rootfs => "/posix",
            Self::Volume => "/volume",
        }
    }
}

/// A new ext4 in a loop device, mounted on the host; unmounted and removed on drop.
pub struct Volume {
    directory: TempDir,
}

impl Volume {
    /// Makes and mounts it.
    ///
    /// # Errors
    /// If mkfs.ext4 or mount fails.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir_in("/run")?;
        let image = directory.path().join("image");
        let mounted = directory.path().join(MOUNTED);
        File::create(&image)?.set_len(VOLUME_BYTES)?;
        fs::create_dir(&mounted)?;
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F", "-m", "0", "-b", "4096", "-I", "256"])
            .args(INITIALISED)
            .arg(&image);
        output(make)?.success().context("mkfs.ext4")?;
        load_module()?;
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(&mounted);
        output(mount)?.success().context("mounting an ext4")?;
        Ok(Self { directory })
    }

    /// Where it is mounted on the host.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join(MOUNTED)
    }

    /// The flag of `ctr run --mount` for it.
    pub fn mount(&self) -> String {
        format!(
            "type=bind,src={},dst={},options=rbind:rw",
            self.path().display(),
            Place::Volume.directory()
        )
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        unmount.arg(self.path());
        if let Err(error) = output(unmount).and_then(crate::containerd::ctr::Output::success) {
            eprintln!("umount {}: {error:#}", self.path().display());
        }
    }
}
