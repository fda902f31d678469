//! The root file system of a snapshotter's mounts: on disks of the VM if they are images or block devices, or if its
//! writable layer is to be one. Pure.

use std::path::Path;

use crate::mount::{Disk, DiskFileSystem, DiskOverlay, DiskSource, LowerLayers, MAX_LAYERS, Mount, Rootfs};
use crate::rootfs::writable_layer;

/// File systems that the guest's kernel mounts from a disk.
const FILE_SYSTEMS: [&str; 2] = ["ext4", "erofs"];

/// The root file system of these mounts of a snapshotter. `template` is what a writable layer that is a disk is to be
/// a copy of; without it, the host writes the layer.
pub fn rootfs(mounts: Vec<Mount>, template: Option<&Path>) -> Rootfs {
    if let Some(overlay) = image_overlay(&mounts, template) {
        return Rootfs::Overlay(overlay);
    }
    if let Some(overlay) = template.and_then(|template| shared_overlay(&mounts, template)) {
        return Rootfs::Overlay(overlay);
    }
    match &mounts[..] {
        [mount] if is_file_system(mount, &FILE_SYSTEMS) => Rootfs::Disk(of_mount(mount)),
        _ => Rootfs::Mounts(mounts),
    }
}

/// The upper directory on the host of a root file system that is an overlay without an id map.
pub fn upper_directory(mounts: &[Mount]) -> Option<&Path> {
    let mount = mounts.last()?;
    let is_overlay = match mounts {
        [_] => mount.kind == "overlay",
        _ => is_template(mount),
    };
    if !is_overlay || !mount.target.is_empty() || has(mount, "uidmap=") || has(mount, "gidmap=") {
        return None;
    }
    value(mount, "lowerdir=")?;
    let upper = Path::new(value(mount, "upperdir=")?);
    upper.is_absolute().then_some(upper)
}

/// Whether the layers of a root file system are images, of which the host mounts none.
pub fn has_images(mounts: &[Mount]) -> bool {
    mounts.len() > 1 && mounts.last().is_some_and(is_template)
}

fn has(mount: &Mount, prefix: &str) -> bool {
    mount.options.iter().any(|option| option.starts_with(prefix))
}

fn value<'a>(mount: &'a Mount, key: &str) -> Option<&'a str> {
    mount.options.iter().find_map(|option| option.strip_prefix(key))
}

/// Whether containerd's mount manager (from 2.2 on) would fill in the options of this overlay, which refer to the
/// mounts before it by index.
fn is_template(mount: &Mount) -> bool {
    let kind = mount.kind.trim_start_matches("format/");
    kind.trim_start_matches("mkdir/").trim_start_matches("format/") == "overlay" && kind != mount.kind
}

fn is_file_system(mount: &Mount, kinds: &[&str]) -> bool {
    kinds.contains(&mount.kind.as_str()) && mount.target.is_empty()
}

/// The overlay of images that the snapshotter erofs gives to a runtime that mounts them itself: its layers, the
/// topmost first, possibly before them an ext4 for the writable layer, and last the overlay with indices in place of
/// paths. None if the mounts are others, or need what is not supported: metadata that are merged into an image of
/// their own (`device=`), dm-verity, or an id map.
fn image_overlay(mounts: &[Mount], template: Option<&Path>) -> Option<DiskOverlay> {
    let (overlay, images) = mounts.split_last()?;
    if !is_template(overlay) || has(overlay, "uidmap=") || has(overlay, "gidmap=") {
        return None;
    }
    let layers = images.get(indices(value(overlay, "lowerdir=")?)?)?;
    let is_plain = |layer: &Mount| {
        is_file_system(layer, &["erofs"]) && !has(layer, "device=") && !has(layer, "X-containerd.")
    };
    if layers.is_empty() || layers.len() > MAX_LAYERS || !layers.iter().all(is_plain) {
        return None;
    }
    let upper = value(overlay, "upperdir=")?;
    let (upper, template) = match upper.strip_suffix("/upper").and_then(indices) {
        Some(range) => {
            let [image] = images.get(range)? else { return None };
            (
                is_file_system(image, &["ext4"]).then(|| writable(of_mount(image)))?,
                None,
            )
        }
        None => (new_layer(Path::new(upper)), Some(template?.to_owned())),
    };
    let is_own = |option: &&String| {
        !["lowerdir=", "upperdir=", "workdir=", "X-containerd.", "ro"]
            .iter()
            .any(|prefix| option.starts_with(prefix))
    };
    Some(DiskOverlay {
        lower: LowerLayers::Disks(layers.iter().map(of_mount).collect()),
        upper,
        template,
        options: overlay.options.iter().filter(is_own).cloned().collect(),
    })
}

/// The range of `{{ mount 2 }}` or `{{ overlay 1 3 }}`, which includes its end.
fn indices(text: &str) -> Option<std::ops::Range<usize>> {
    let words = text.strip_prefix("{{")?.strip_suffix("}}")?;
    let words: Vec<&str> = words.split_whitespace().collect();
    let (first, last) = match words[..] {
        ["mount", index] => (index, index),
        ["overlay", first, last] => (first, last),
        _ => return None,
    };
    Some(first.parse().ok()?..last.parse::<usize>().ok()?.checked_add(1)?)
}

/// The layers below the upper directory, mounted by the host, read-only: an overlay, or the directory if there is only
/// one.
fn shared_overlay(mounts: &[Mount], template: &Path) -> Option<DiskOverlay> {
    let (upper, [mount]) = (upper_directory(mounts)?, mounts) else {
        return None;
    };
    let layers = value(mount, "lowerdir=")?;
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
        lower: LowerLayers::Shared(lower),
        upper: new_layer(upper),
        template: Some(template.to_owned()),
        options: Vec::new(),
    })
}

/// A writable layer in the upper directory `upper`.
fn new_layer(upper: &Path) -> DiskFileSystem {
    writable(DiskFileSystem {
        disk: Disk {
            source: DiskSource::File(upper.join(writable_layer::FILE)),
            read_only: false,
        },
        kind: "ext4".to_owned(),
        options: Vec::new(),
    })
}

/// The file system of a writable layer.
fn writable(mut layer: DiskFileSystem) -> DiskFileSystem {
    /// Blocks of removed files return to the host. The inode tables of the template need not be written.
    const OPTIONS: [&str; 3] = ["noatime", "discard", "noinit_itable"];
    layer.options.extend(OPTIONS.map(str::to_owned));
    layer
}

fn of_mount(mount: &Mount) -> DiskFileSystem {
    let is = |wanted: &'static str| move |option: &&String| *option == wanted;
    let read_only = mount.options.iter().any(|option| option == "ro");
    // A loop device is what the host would need.
    let options = mount.options.iter().filter(|option| !is("loop")(option));
    DiskFileSystem {
        disk: Disk {
            source: DiskSource::File((&mount.source).into()),
            // An erofs image can't be written.
            read_only: read_only || mount.kind == "erofs",
        },
        kind: mount.kind.clone(),
        options: options.cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            kind: kind.to_owned(),
            source: source.to_owned(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn an_image_is_a_disk_and_other_mounts_are_not() {
        let disk = |kind: &str, read_only, options: &[&str]| {
            Rootfs::Disk(DiskFileSystem {
                disk: Disk {
                    source: DiskSource::File("/image".into()),
                    read_only,
                },
                kind: kind.to_owned(),
                options: options.iter().map(|option| (*option).to_owned()).collect(),
            })
        };
        let mount = |kind: &str, options: &[&str]| mount(kind, "/image", options);
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
        let overlay = |options: &[&str]| vec![mount("overlay", "overlay", options)];
        let lower = |options: &[&str]| {
            let mounts = overlay(options);
            assert_eq!(rootfs(mounts.clone(), None), Rootfs::Mounts(mounts.clone()));
            let Rootfs::Overlay(DiskOverlay {
                lower: LowerLayers::Shared(lower),
                upper,
                ..
            }) = rootfs(mounts, Some(Path::new("/template")))
            else {
                return None;
            };
            let file = Path::new("/s/3/fs").join(writable_layer::FILE);
            assert_eq!(upper.disk.source, DiskSource::File(file));
            Some((lower.kind, lower.source, lower.options.join(",")))
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

    /// As containerd 2.2 and later give them.
    fn images(lower: &str, upper: &str, first: Mount) -> Vec<Mount> {
        vec![
            first,
            mount("erofs", "/s/2/layer.erofs", &["ro", "loop"]),
            mount("erofs", "/s/1/layer.erofs", &["ro", "loop"]),
            mount(
                "format/mkdir/overlay",
                "overlay",
                &[
                    "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                    &format!("workdir={upper}/work"),
                    &format!("upperdir={upper}/upper"),
                    &format!("lowerdir={lower}"),
                    "index=off",
                ],
            ),
        ]
    }

    fn described(mounts: Vec<Mount>, template: Option<&Path>) -> Option<String> {
        let Rootfs::Overlay(overlay) = rootfs(mounts, template) else {
            return None;
        };
        let disks: Vec<String> = overlay
            .disks()
            .map(|layer| format!("{} {} {}", layer.kind, layer.disk.source, layer.options.join(",")))
            .collect();
        Some(format!(
            "{} {:?} {:?}",
            disks.join("; "),
            overlay.template,
            overlay.options
        ))
    }

    #[test]
    fn images_of_layers_are_disks_below_a_writable_one() {
        let upper = mount("ext4", "/s/3/rwlayer.img", &["rw", "loop"]);
        assert_eq!(
            described(images("{{ overlay 1 2 }}", "{{ mount 0 }}", upper.clone()), None).unwrap(),
            "ext4 disk /s/3/rwlayer.img rw,noatime,discard,noinit_itable; erofs disk /s/2/layer.erofs ro; \
             erofs disk /s/1/layer.erofs ro None [\"index=off\"]"
        );
        let top = mount("erofs", "/s/3/layer.erofs", &["ro", "loop"]);
        let on_host = images("{{ overlay 0 2 }}", "/s/4", top);
        assert_eq!(upper_directory(&on_host), Some(Path::new("/s/4/upper")));
        let described_with = |template| described(on_host.clone(), template);
        assert_eq!(described_with(None), None);
        let text = described_with(Some(Path::new("/template"))).unwrap();
        assert!(
            text.starts_with("ext4 disk /s/4/upper/.nacre-writable-layer"),
            "{text}"
        );
        assert!(text.contains("; erofs disk /s/3/layer.erofs ro; "), "{text}");
        let single = images("{{ mount 1 }}", "{{ mount 0 }}", upper);
        assert!(!described(single, None).unwrap().contains("/s/1/"));
    }

    #[test]
    fn what_is_not_supported_of_images_is_not_taken_for_plain_layers() {
        let upper = || mount("ext4", "/s/3/rwlayer.img", &["rw", "loop"]);
        let good = images("{{ overlay 1 2 }}", "{{ mount 0 }}", upper());
        assert!(described(good.clone(), None).is_some());
        for option in [
            "device=/s/1/layer.erofs",
            "X-containerd.dmverity=/s/2/layer.erofs.dmverity",
        ] {
            let mut changed = good.clone();
            changed[1].options.push(option.to_owned());
            assert_eq!(described(changed, None), None, "{option}");
        }
        let mut mapped = good.clone();
        mapped[3].options.push("uidmap=0:1:2".to_owned());
        assert_eq!(described(mapped, None), None);
        for lower in [
            "{{ overlay 1 9 }}",
            "{{ overlay 2 1 }}",
            "{{ mount -1 }}",
            "{{ source 1 }}",
            "/s/1",
        ] {
            let changed = images(lower, "{{ mount 0 }}", upper());
            assert_eq!(described(changed, None), None, "{lower}");
        }
        assert_eq!(
            described(images("{{ overlay 0 2 }}", "{{ mount 0 }}", upper()), None),
            None
        );
        assert_eq!(
            described(images("{{ mount 1 }}", "{{ mount 2 }}", upper()), None),
            None
        );
    }
}
