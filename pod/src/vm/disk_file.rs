//! Opens what is to become a disk of a VM: an image file or a block device of the host. Called by
//! [`super::disks`]; never reads or writes it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::mount::{Disk, DiskSource};

/// Why the host's file can't be a disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the host has no block device {major}:{minor}: {source}")]
    NoDevice {
        major: u32,
        minor: u32,
        source: io::Error,
    },
    #[error("opening the disk {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{}: expected a regular file or a block device", .0.display())]
    Kind(PathBuf),
    #[error("{} is not block device {major}:{minor} of the host", path.display())]
    OtherDevice { path: PathBuf, major: u32, minor: u32 },
}

/// What makes two paths the same disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileId {
    /// The number of a block device.
    Device(u64),
    /// File system and inode.
    File(u64, u64),
}

/// An open disk of the host.
#[derive(Debug)]
pub struct DiskFile {
    pub file: File,
    pub id: FileId,
}

impl DiskFile {
    /// Opens `disk`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(disk: &Disk) -> Result<Self, Error> {
        let path = match &disk.source {
            DiskSource::File(path) => path.clone(),
            DiskSource::Device { major, minor } => node_of(*major, *minor)?,
        };
        let failed = |source| Error::Open {
            path: path.clone(),
            source,
        };
        // Looked at before it is opened: opening a FIFO would wait.
        let kind = fs::metadata(&path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::Kind(path));
        }
        let file = File::options()
            .read(true)
            .write(!disk.read_only)
            .open(&path)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let id = if metadata.file_type().is_block_device() {
            FileId::Device(metadata.rdev())
        } else {
            FileId::File(metadata.dev(), metadata.ino())
        };
        if let DiskSource::Device { major, minor } = disk.source
            && id != FileId::Device(rustix::fs::makedev(major, minor))
        {
            return Err(Error::OtherDevice { path, major, minor });
        }
        Ok(Self { file, id })
    }
}

/// The node in /dev of a block device.
fn node_of(major: u32, minor: u32) -> Result<PathBuf, Error> {
    let file = format!("/sys/dev/block/{major}:{minor}/uevent");
    let failed = |source| Error::NoDevice { major, minor, source };
    let uevent = fs::read_to_string(file).map_err(failed)?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| failed(io::Error::other("its uevent names no node")))?;
    Ok(Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(source: DiskSource, read_only: bool) -> Result<DiskFile, Error> {
        DiskFile::open(&Disk { source, read_only })
    }

    #[test]
    fn two_paths_of_a_file_are_one_disk() {
        let directory = tempfile::tempdir().unwrap();
        let (image, link) = (directory.path().join("image"), directory.path().join("link"));
        fs::write(&image, [0; 512]).unwrap();
        fs::hard_link(&image, &link).unwrap();
        let ids = [image, link].map(|path| open(DiskSource::File(path), true).unwrap().id);
        assert_eq!(ids[0], ids[1]);
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [fifo, directory.path().to_owned()] {
            let error = open(DiskSource::File(path.clone()), true).unwrap_err();
            assert!(matches!(error, Error::Kind(_)), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
        let missing = open(DiskSource::File("/none".into()), true).unwrap_err();
        assert!(missing.to_string().contains("/none"), "{missing}");
        let device = DiskSource::Device {
            major: 4095,
            minor: 1,
        };
        let error = open(device, true).unwrap_err().to_string();
        assert!(error.contains("4095:1"), "{error}");
    }
}
