//! The disks of a container: a root file system that is an image or a block device of the host, and block devices
//! in its spec. Pure.

use std::path::Path;

use nacre_protocol::control::MAX_DISKS;
use nacre_protocol::spec::Findings;
use serde_json::Value;

use crate::mount::{Disk, DiskOverlay, DiskRootfs, DiskSource, Mount, Rootfs};
use crate::rootfs::writable_layer;

/// File systems that the guest's kernel mounts from a disk.
const FILE_SYSTEMS: [&str; 2] = ["ext4", "erofs"];

/// The root file system of these mounts of a snapshotter: on a disk if it is one mount of an image or a block
/// device. The writable layer of an overlay is a disk if there is a template for it.
pub fn rootfs(mounts: Vec<Mount>, template: Option<&Path>) -> Rootfs {
    if let Some(overlay) = template.and_then(|template| disk_overlay(&mounts, template)) {
        return Rootfs::Overlay(overlay);
    }
    match &mounts[..] {
        [mount] if FILE_SYSTEMS.contains(&mount.kind.as_str()) && mount.target.is_empty() => {
            Rootfs::Disk(of_mount(mount))
        }
        _ => Rootfs::Mounts(mounts),
    }
}

/// The upper directory of a root file system that is one overlay with a writable layer, and no id map.
pub fn upper_directory(mounts: &[Mount]) -> Option<&Path> {
    let [mount] = mounts else { return None };
    let has = |key: &str| mount.options.iter().any(|option| option.starts_with(key));
    if mount.kind != "overlay" || !mount.target.is_empty() || has("uidmap=") || has("gidmap=") {
        return None;
    }
    let value = |key: &str| mount.options.iter().find_map(|option| option.strip_prefix(key));
    value("lowerdir=")?;
    value("upperdir=").map(Path::new)
}

/// The layers below the upper directory, mounted read-only: an overlay, or the directory if there is only one.
fn disk_overlay(mounts: &[Mount], template: &Path) -> Option<DiskOverlay> {
    let (upper, [mount]) = (upper_directory(mounts)?, mounts) else {
        return None;
    };
    let layers = mount
        .options
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="))?;
    let lower = if layers.contains(':') {
        let is_of_upper =
            |option: &&String| option.starts_with("upperdir=") || option.starts_with("workdir=");
        let others = mount.options.iter().filter(|option| !is_of_upper(option));
        Mount {
            options: others.cloned().chain(["ro".to_owned()]).collect(),
            ..mount.clone()
        }
    } else {
        Mount {
            kind: "bind".to_owned(),
            source: layers.to_owned(),
            target: String::new(),
            options: vec!["bind".to_owned(), "ro".to_owned()],
        }
    };
    Some(DiskOverlay {
        lower,
        disk: upper.join(writable_layer::FILE),
        template: template.to_owned(),
    })
}

fn of_mount(mount: &Mount) -> DiskRootfs {
    let is = |wanted: &'static str| move |option: &&String| *option == wanted;
    let read_only = mount.options.iter().any(|option| option == "ro");
    // A loop device is what the host would need.
    let options = mount.options.iter().filter(|option| !is("loop")(option));
    DiskRootfs {
        disk: Disk {
            source: DiskSource::File((&mount.source).into()),
            // An erofs image can't be written.
            read_only: read_only || mount.kind == "erofs",
        },
        kind: mount.kind.clone(),
        options: options.cloned().collect(),
    }
}

/// The block devices in `linux.devices`, each once. A device that no rule lets the container write is read-only
/// on the host, too.
pub fn devices(spec: &Value, findings: &mut Findings) -> Vec<Disk> {
    let mut disks: Vec<Disk> = Vec::new();
    let listed = spec["linux"]["devices"].as_array().into_iter().flatten();
    for (index, device) in listed.enumerate().filter(|(_, device)| device["type"] == "b") {
        let number = |key: &str| device[key].as_i64().and_then(|number| u32::try_from(number).ok());
        let (Some(major), Some(minor)) = (number("major"), number("minor")) else {
            findings.refuse(
                format!("linux.devices[{index}].major"),
                "a block device needs the numbers of one of the host",
            );
            continue;
        };
        let disk = Disk {
            source: DiskSource::Device { major, minor },
            read_only: !may_write(spec, major, minor),
        };
        if !disks.contains(&disk) {
            disks.push(disk);
        }
    }
    if disks.len() > MAX_DISKS {
        let count = disks.len();
        findings.refuse(
            "linux.devices",
            format!("{count} block devices, but a VM has at most {MAX_DISKS} disks"),
        );
    }
    disks
}

/// Whether the rules of `spec` let its container write this block device: the last one that matches decides.
fn may_write(spec: &Value, major: u32, minor: u32) -> bool {
    let rules = spec["linux"]["resources"]["devices"].as_array();
    let is = |number: &Value, wanted: u32| {
        matches!(number.as_i64(), None | Some(-1)) || number.as_i64() == Some(wanted.into())
    };
    let mut matching = rules
        .into_iter()
        .flatten()
        .filter(|rule| match rule["type"].as_str() {
            None | Some("" | "a") => true,
            Some("b") => {
                is(&rule["major"], major)
                    && is(&rule["minor"], minor)
                    && rule["access"].as_str().is_none_or(|access| access.contains('w'))
            }
            Some(_) => false,
        });
    matching.next_back().is_some_and(|rule| rule["allow"] == true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_image_is_a_disk_and_other_mounts_are_not() {
        let mount = |kind: &str, options: &[&str]| Mount {
            kind: kind.to_owned(),
            source: "/image".to_owned(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        let disk = |kind: &str, read_only, options: &[&str]| {
            Rootfs::Disk(DiskRootfs {
                disk: Disk {
                    source: DiskSource::File("/image".into()),
                    read_only,
                },
                kind: kind.to_owned(),
                options: options.iter().map(|option| (*option).to_owned()).collect(),
            })
        };
        assert_eq!(
            rootfs(vec![mount("ext4", &["loop", "rw", "sync"])], None),
            disk("ext4", false, &["rw", "sync"])
        );
        assert_eq!(
            rootfs(vec![mount("ext4", &["ro", "loop"])], None),
            disk("ext4", true, &["ro"])
        );
        assert_eq!(rootfs(vec![mount("erofs", &[])], None), disk("erofs", true, &[]));
        for others in [
            vec![mount("overlay", &[])],
            vec![mount("bind", &[])],
            vec![mount("ext4", &[]), mount("ext4", &[])],
        ] {
            assert_eq!(
                rootfs(others.clone(), Some(Path::new("/t"))),
                Rootfs::Mounts(others)
            );
        }
    }

    #[test]
    fn a_writable_layer_is_a_disk_over_what_is_below_it() {
        let overlay = |options: &[&str]| {
            vec![Mount {
                kind: "overlay".to_owned(),
                source: "overlay".to_owned(),
                target: String::new(),
                options: options.iter().map(|option| (*option).to_owned()).collect(),
            }]
        };
        let lower = |options: &[&str]| {
            let mounts = overlay(options);
            assert_eq!(rootfs(mounts.clone(), None), Rootfs::Mounts(mounts.clone()));
            match rootfs(mounts, Some(Path::new("/template"))) {
                Rootfs::Overlay(DiskOverlay { lower, disk, .. }) => {
                    assert_eq!(disk, Path::new("/s/3/fs").join(writable_layer::FILE));
                    Some((lower.kind, lower.source, lower.options.join(",")))
                }
                Rootfs::Disk(_) | Rootfs::Directory(_) | Rootfs::Mounts(_) => None,
            }
        };
        let text =
            |kind: &str, source: &str, options: &str| Some((kind.into(), source.into(), options.into()));
        assert_eq!(
            lower(&[
                "index=off",
                "workdir=/s/3/work",
                "upperdir=/s/3/fs",
                "lowerdir=/s/2/fs:/s/1/fs"
            ]),
            text("overlay", "overlay", "index=off,lowerdir=/s/2/fs:/s/1/fs,ro")
        );
        assert_eq!(
            lower(&["workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/1/fs"]),
            text("bind", "/s/1/fs", "bind,ro")
        );
        assert_eq!(lower(&["lowerdir=/s/2/fs:/s/1/fs"]), None);
        let mapped = [
            "workdir=/w",
            "upperdir=/s/3/fs",
            "lowerdir=/s/1/fs",
            "uidmap=0:1:2",
        ];
        assert_eq!(lower(&mapped), None);
    }

    #[test]
    fn a_device_is_read_only_unless_a_rule_allows_writing() {
        let rule = |allow: bool, kind: &str, minor: i64, access: &str| json!({"allow": allow, "type": kind, "major": 8, "minor": minor, "access": access});
        let deny_all = json!({"allow": false, "access": "rwm"});
        for (rules, read_only) in [
            (json!([]), true),
            (json!([deny_all]), true),
            (json!([deny_all, rule(true, "b", 1, "rwm")]), false),
            (json!([deny_all, rule(true, "b", -1, "w")]), false),
            (json!([deny_all, rule(true, "b", 1, "rm")]), true),
            (json!([deny_all, rule(true, "b", 2, "rwm")]), true),
            (json!([deny_all, rule(true, "c", 1, "rwm")]), true),
            (json!([rule(true, "b", 1, "rwm"), deny_all]), true),
            (json!([{"allow": true, "access": "rwm"}]), false),
        ] {
            let device = json!({"type": "b", "path": "/dev/x", "major": 8, "minor": 1});
            let spec = json!({"linux": {"devices": [device, device], "resources": {"devices": rules}}});
            let mut findings = Findings::default();
            let disks = devices(&spec, &mut findings);
            assert_eq!(findings.refused, []);
            let source = DiskSource::Device { major: 8, minor: 1 };
            assert_eq!(disks, [Disk { source, read_only }], "{rules}");
        }
    }

    #[test]
    fn more_devices_than_a_vm_has_disks_are_refused() {
        let device = |minor: usize| json!({"type": "b", "path": "/dev/x", "major": 8, "minor": minor});
        let list: Vec<Value> = (0..=MAX_DISKS).map(device).collect();
        let mut findings = Findings::default();
        devices(&json!({"linux": {"devices": list}}), &mut findings);
        assert_eq!(findings.refused[0].path, "linux.devices");
        let mut findings = Findings::default();
        let unnumbered = json!({"linux": {"devices": [{"type": "b", "path": "/dev/x", "major": -1}]}});
        assert_eq!(devices(&unnumbered, &mut findings), []);
        assert_eq!(findings.refused[0].path, "linux.devices[0].major");
    }
}
