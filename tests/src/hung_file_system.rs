//! A file system of the host whose server is hung, as NFS without its server. For tests of volumes that do not respond.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::containerd::ctr::{DEADLINE, wait_readable};

/// A file system of the host that answers nothing once it is mounted, as NFS without its server: a process that uses it
/// waits in the host's kernel until it is killed. Unmounted on drop.
pub struct HungFileSystem {
    directory: PathBuf,
    device: File,
}

/// What FUSE_INIT is answered with: version 7.31 and no features (`struct fuse_init_out`, fuse.h).
fn init_answer(request: &[u8]) -> Result<Vec<u8>> {
    let unique = request.get(8..16).context("a request without a header")?;
    let length = 16 + 64_u32;
    let mut answer = Vec::new();
    answer.extend(length.to_le_bytes());
    answer.extend(0_u32.to_le_bytes());
    answer.extend(unique);
    answer.extend(7_u32.to_le_bytes());
    answer.extend(31_u32.to_le_bytes());
    answer.resize(usize::try_from(length)?, 0);
    Ok(answer)
}

impl HungFileSystem {
    /// Makes `directory` and mounts one on it.
    ///
    /// # Errors
    /// If the directory exists, or the host has no FUSE.
    pub fn new(directory: PathBuf) -> Result<Self> {
        fs::create_dir(&directory)?;
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        mount(
            Some("hung"),
            &directory,
            Some("fuse"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .context("mounting a file system that never answers")?;
        let mut hung = Self { directory, device };
        let mut request = vec![0; 64 << 10];
        let length = hung.device.read(&mut request)?;
        let answer = init_answer(&request[..length])?;
        hung.device.write_all(&answer)?;
        Ok(hung)
    }

    /// Its mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Waits until it is used.
    ///
    /// # Errors
    /// If nobody uses it within [`DEADLINE`].
    pub fn until_asked(&self) -> Result<()> {
        wait_readable(&self.device, Instant::now() + DEADLINE).context("nobody uses the file system")
    }
}

impl Drop for HungFileSystem {
    fn drop(&mut self) {
        // The leak check reports a mount that stays.
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
    }
}
