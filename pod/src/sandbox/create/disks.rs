//! The disks of a container that is created: adds them to the VM, and lists what the agent is to mount.

use nacre_protocol::agent::{self, DeviceNumber, FileSystem};
use nacre_protocol::guest;

use super::super::failed;
use super::Job;
use crate::error::Error;
use crate::mount::{Disk, DiskOverlay, DiskSource, Rootfs};
use crate::rootfs;

impl Job {
    /// Adds the container's disks to the VM: those of its spec, and that of its root file system.
    pub(super) async fn attach_disks(&self) -> Result<(Vec<agent::Disk>, Vec<FileSystem>), Error> {
        let (mut attached, mut file_systems) = (Vec::new(), Vec::new());
        if !self.plan.has_disks() {
            return Ok((attached, file_systems));
        }
        let disks = self.disks.clone().ok_or(Error::Closing)?;
        let attach = async |disk: &Disk| {
            let serial = disks.attach(&self.id, disk).await;
            serial.map_err(|error| Error::from(failed("attach disks", error, None)))
        };
        match &self.plan.rootfs {
            Rootfs::Directory(_) | Rootfs::Mounts(_) => {}
            Rootfs::Disk(root) => {
                let serial = attach(&root.disk).await?;
                file_systems.push(file_system(
                    &root.kind,
                    serial,
                    guest::disk_rootfs_path(&self.id),
                    root.options.clone(),
                ));
            }
            Rootfs::Overlay(DiskOverlay { disk, template, .. }) => {
                let made = rootfs::writable_layer::make(template, disk);
                made.map_err(|error| failed("make the writable layer", error, None))?;
                let disk = Disk {
                    source: DiskSource::File(disk.clone()),
                    read_only: false,
                };
                file_systems.extend(overlay(&self.id, attach(&disk).await?));
            }
        }
        for disk in &self.plan.disks {
            let serial = attach(disk).await?;
            let device = match disk.source {
                DiskSource::Device { major, minor } => Some(DeviceNumber {
                    major,
                    minor,
                    ..Default::default()
                }),
                DiskSource::File(_) => None,
            };
            attached.push(agent::Disk {
                serial,
                device: device.into(),
                ..Default::default()
            });
        }
        self.step("disks attached").await;
        Ok((attached, file_systems))
    }
}

fn file_system(kind: &str, disk: String, target: String, options: Vec<String>) -> FileSystem {
    FileSystem {
        type_: kind.to_owned(),
        disk,
        target,
        options,
        ..Default::default()
    }
}

/// What the agent mounts for container `id`, whose writable layer is the disk with this serial number: the disk, and
/// the overlay of it and the layers below, which the host shares.
fn overlay(id: &str, serial: String) -> [FileSystem; 2] {
    /// Blocks of removed files return to the host. The inode tables of the template need not be written.
    const OPTIONS: [&str; 3] = ["noatime", "discard", "noinit_itable"];
    let layer = format!("{}/layer", guest::disks_path(id));
    let directories = vec![
        // With the slash, looking it up mounts it: each mount of the shared tree is an automount.
        format!(
            "lowerdir={}/",
            guest::shared_path(&format!("{id}/{}", guest::LOWER_DIR))
        ),
        format!("upperdir={layer}/upper"),
        format!("workdir={layer}/work"),
    ];
    let options = OPTIONS.map(str::to_owned).to_vec();
    [
        file_system("ext4", serial, layer, options),
        file_system("overlay", String::new(), guest::disk_rootfs_path(id), directories),
    ]
}
