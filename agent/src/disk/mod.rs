//! The guest's disks: finds them by their serial numbers, mounts their file systems for a container, and removes
//! them when no container uses them any more. Called by `container` for a container's disks, and by `service`;
//! never formats or repairs a disk.

mod file_systems;
mod numbers;
mod superblock;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nacre_protocol::agent::Disk;

use crate::error::Error;
use crate::pci;
use crate::slow_call::SlowCall;

pub use file_systems::MountedFileSystems;
pub use numbers::use_guest_numbers;

const BLOCK_DEVICES: &str = "/sys/block";

/// A disk that the guest has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDisk {
    /// The device node, such as "/dev/vda".
    pub node: PathBuf,
    /// Its number.
    pub major: u32,
    /// Its number.
    pub minor: u32,
}

/// The disks of a container that are block devices of the host in its spec, by their numbers (major, minor) there.
pub type DisksByHostNumber = BTreeMap<(u32, u32), GuestDisk>;

/// Finds those of `disks` that are block devices of the host in the container's spec.
///
/// # Errors
/// If the guest has no such disk.
pub async fn find_devices(disks: &[Disk]) -> Result<DisksByHostNumber, Error> {
    let mut found = DisksByHostNumber::new();
    for disk in disks {
        if let Some(device) = disk.device.as_ref() {
            found.insert((device.major, device.minor), find(&disk.serial).await?);
        }
    }
    Ok(found)
}

/// Finds the disk with this serial number. If the guest does not have it, looks for new devices first.
///
/// # Errors
/// If there is no such disk.
async fn find(serial: &str) -> Result<GuestDisk, Error> {
    let name = match name_of(serial)? {
        Some(name) => name,
        None => {
            pci::find_attached().await?;
            let found = name_of(serial)?;
            found.ok_or_else(|| Error::BadRequest {
                what: format!("the guest has no disk with the serial number {serial:?}"),
            })?
        }
    };
    let node = Path::new("/dev").join(&name);
    let metadata = fs::metadata(&node).map_err(Error::file("looking up", &node))?;
    let number = metadata.rdev();
    Ok(GuestDisk {
        node,
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
    })
}

/// Writes what the kernel has cached of the disk with this serial number, and removes the disk. Has no effect if
/// the guest does not have it.
///
/// # Errors
/// EBUSY if a file system of the disk is mounted, EIO if the disk can't be written.
pub async fn remove(serial: &str) -> Result<(), Error> {
    let Some(name) = name_of(serial)? else {
        return Ok(());
    };
    let node = Path::new("/dev").join(&name);
    // Exclusive: fails if it is mounted.
    let disk = File::options().read(true).custom_flags(libc::O_EXCL).open(&node);
    let disk = disk.map_err(Error::file("opening", &node))?;
    let written = SlowCall::run([disk.as_raw_fd()], || disk.sync_all()).await;
    written.map_err(Error::file("writing", &node))?;
    drop(disk);
    // The disk's device is that of virtio, which is on the PCI function.
    let device = Path::new(BLOCK_DEVICES).join(&name).join("device");
    let device = device.canonicalize().map_err(Error::file("resolving", device))?;
    let function = device.parent().unwrap_or(&device).join("remove");
    let file = File::options().write(true).open(&function);
    let file = file.map_err(Error::file("opening", &function))?;
    // Waits for the disk's requests.
    let removed = SlowCall::run([file.as_raw_fd()], || (&file).write_all(b"1")).await;
    removed.map_err(Error::file("writing", function))
}

/// The name of the disk with this serial number, such as "vda".
fn name_of(serial: &str) -> Result<Option<String>, Error> {
    let failed = || Error::file("reading", BLOCK_DEVICES);
    for entry in fs::read_dir(BLOCK_DEVICES).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let found = match fs::read_to_string(entry.path().join("serial")) {
            Ok(found) => found,
            // A loop device has none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::file("reading", entry.path().join("serial"))(error)),
        };
        if found.trim_end() == serial {
            return Ok(entry.file_name().into_string().ok());
        }
    }
    Ok(None)
}
