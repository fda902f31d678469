//! The disks of a container that is created: adds them to the VM, and lists what the agent is to mount.

use nacre_protocol::agent::{self, DeviceNumber, FileSystem};
use nacre_protocol::guest;

use super::super::failed;
use super::Job;
use crate::error::Error;
use crate::mount::{Disk, DiskFileSystem, DiskOverlay, DiskSource, LowerLayers, Rootfs};
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
                file_systems.push(mounted(root, serial, guest::disk_rootfs_path(&self.id)));
            }
            Rootfs::Overlay(overlay) => {
                if let (Some(template), DiskSource::File(file)) =
                    (&overlay.template, &overlay.upper.disk.source)
                {
                    let made = rootfs::writable_layer::make(template, file);
                    made.map_err(|error| failed("make the writable layer", error, None))?;
                }
                let mut serials = Vec::new();
                for layer in overlay.disks() {
                    serials.push(attach(&layer.disk).await?);
                }
                file_systems.extend(overlay_file_systems(&self.id, overlay, serials));
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

/// `root` on the disk with this serial number, mounted at `target`.
fn mounted(root: &DiskFileSystem, serial: String, target: String) -> FileSystem {
    file_system(&root.kind, serial, target, root.options.clone())
}

/// What the agent mounts for container `id`: the file systems of the overlay's disks, which have these serial numbers,
/// and the overlay.
fn overlay_file_systems(id: &str, overlay: &DiskOverlay, serials: Vec<String>) -> Vec<FileSystem> {
    let directory = guest::disks_path(id);
    let names = overlay.disks().enumerate().map(|(index, _)| match index {
        0 => format!("{directory}/layer"),
        index => format!("{directory}/lower-{index}"),
    });
    let mounts = overlay.disks().zip(serials).zip(names);
    let mut file_systems: Vec<FileSystem> = mounts
        .map(|((layer, serial), target)| mounted(layer, serial, target))
        .collect();
    let targets: Vec<&str> = file_systems.iter().map(|layer| layer.target.as_str()).collect();
    let (layer, disks) = targets.split_first().unwrap_or((&"", &[]));
    let lower = match overlay.lower {
        // With the slash, looking it up mounts it: each mount of the shared tree is an automount.
        LowerLayers::Shared(_) => {
            format!("{}/", guest::shared_path(&format!("{id}/{}", guest::LOWER_DIR)))
        }
        LowerLayers::Disks(_) => disks.join(":"),
    };
    let mut options = overlay.options.clone();
    options.extend([
        format!("lowerdir={lower}"),
        format!("upperdir={layer}/upper"),
        format!("workdir={layer}/work"),
    ]);
    let target = guest::disk_rootfs_path(id);
    file_systems.push(file_system("overlay", String::new(), target, options));
    file_systems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::Mount;

    #[test]
    fn an_overlay_is_mounted_after_its_disks() {
        let disk = |file: &str, kind: &str| DiskFileSystem {
            disk: Disk {
                source: DiskSource::File(file.into()),
                read_only: kind == "erofs",
            },
            kind: kind.to_owned(),
            options: Vec::new(),
        };
        let mounted = |lower: LowerLayers, serials: &[&str]| -> Vec<String> {
            let overlay = DiskOverlay {
                lower,
                upper: disk("/upper", "ext4"),
                template: None,
                options: vec!["index=off".to_owned()],
            };
            let serials = serials.iter().map(|serial| (*serial).to_owned()).collect();
            let mounts = overlay_file_systems("c", &overlay, serials);
            let text = |mount: FileSystem| {
                let options = mount.options.join(",");
                format!("{} {} {} {options}", mount.type_, mount.disk, mount.target)
            };
            mounts.into_iter().map(text).collect()
        };
        let directory = "/run/nacre/disks/c";
        let layers = LowerLayers::Disks(vec![disk("/2", "erofs"), disk("/1", "erofs")]);
        assert_eq!(
            mounted(layers, &["u", "l2", "l1"]),
            [
                format!("ext4 u {directory}/layer "),
                format!("erofs l2 {directory}/lower-1 "),
                format!("erofs l1 {directory}/lower-2 "),
                format!(
                    "overlay  {directory}/rootfs index=off,lowerdir={directory}/lower-1:{directory}/lower-2,\
                     upperdir={directory}/layer/upper,workdir={directory}/layer/work"
                ),
            ]
        );
        let shared = LowerLayers::Shared(Mount {
            kind: "bind".to_owned(),
            source: "/1".to_owned(),
            target: String::new(),
            options: Vec::new(),
        });
        let mounts = mounted(shared, &["u"]);
        assert_eq!(mounts.len(), 2);
        assert!(
            mounts[1].contains("lowerdir=/run/nacre/shared/c/lower/,"),
            "{mounts:?}"
        );
    }
}
