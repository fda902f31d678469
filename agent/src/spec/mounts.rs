//! Rewrites the options of a container's mounts for libcontainer. Propagation types, which libcontainer
//! applies wrongly or not at all, are returned as [`MountPropagation`] for `runtime::propagation`.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, Mount, Spec};
use serde::{Deserialize, Serialize};

/// The propagation types to set on a mount once it exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPropagation {
    /// The mount point in the container.
    pub destination: PathBuf,
    /// Mount options such as `rslave`, in the spec's order.
    pub options: Vec<String>,
}

/// Rewrites the mounts of `spec` and the `rootfsPropagation` of `linux` for libcontainer. Returns the
/// propagation types that libcontainer does not set.
pub fn prepare(spec: &mut Spec, linux: &mut Linux) -> Vec<MountPropagation> {
    // libcontainer knows only the names without "r", and applies each of them recursively.
    let propagation = linux.rootfs_propagation().clone().unwrap_or_default();
    let plain = propagation.strip_prefix('r').unwrap_or(&propagation);
    let is_shared = plain == "shared";
    linux.set_rootfs_propagation(Some(plain.to_owned()).filter(|name| !name.is_empty()));
    let mut all = Vec::new();
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let propagation = rewrite(mount, is_shared);
        if !propagation.options.is_empty() {
            all.push(propagation);
        }
    }
    all
}

/// `path` as an absolute path without `.` and `..`, by its text alone: symbolic links are not resolved.
pub fn normalize(path: &Path) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(part) => normal.push(part),
            Component::ParentDir => {
                normal.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    normal
}

fn rewrite(mount: &mut Mount, is_shared: bool) -> MountPropagation {
    mount.set_destination(normalize(mount.destination()));
    let mut propagation = MountPropagation {
        destination: mount.destination().clone(),
        options: Vec::new(),
    };
    let mut kept = Vec::new();
    for option in mount.options().iter().flatten() {
        match option.as_str() {
            // libcontainer drops these options, but passes on "sync=" as mount data, for which the kernel
            // sets the flag.
            "sync" | "dirsync" => kept.push(format!("{option}=")),
            // A mount is private already unless its parent is shared.
            "private" | "rprivate" if !is_shared => {}
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" | "unbindable"
            | "runbindable" => {
                propagation.options.push(option.clone());
            }
            // libcontainer knows only the recursive form. It has the same effect on a new mount, and also
            // applies to the mounts below a bind mount.
            "nosymfollow" | "symfollow" => kept.push(format!("r{option}")),
            "noiversion" => {}
            _ => kept.push(option.clone()),
        }
    }
    mount.set_options(Some(kept));
    if mount.source().is_none() {
        // libcontainer requires a source, though it is only a label here.
        let name = mount.typ().clone().unwrap_or_default();
        mount.set_source(Some(PathBuf::from(name)));
    }
    propagation
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn prepared(root: &str, options: Value) -> (Vec<String>, Vec<MountPropagation>, Option<String>) {
        let mut spec: Spec =
            serde_json::from_value(json!({"ociVersion": "1.0", "linux": {"rootfsPropagation": root},
            "mounts": [{"destination": "/a", "type": "tmpfs", "options": options}]}))
            .unwrap();
        let mut linux = spec.linux().clone().unwrap();
        let propagation = prepare(&mut spec, &mut linux);
        let options = spec.mounts().as_ref().unwrap()[0].options().clone().unwrap();
        (options, propagation, linux.rootfs_propagation().clone())
    }

    #[test]
    fn destinations_do_not_go_up() {
        for (path, want) in [
            ("/a/b", "/a/b"),
            ("/../../up", "/up"),
            ("/a/../b/./c/", "/b/c"),
            ("rel", "/rel"),
            ("..", "/"),
        ] {
            assert_eq!(normalize(Path::new(path)), Path::new(want), "{path}");
        }
    }

    #[test]
    fn options_that_libcontainer_applies_are_kept() {
        let options = json!(["ro", "rprivate", "nosymfollow", "noiversion", "size=1m"]);
        let (kept, propagation, root) = prepared("", options);
        assert_eq!(kept, ["ro", "rnosymfollow", "size=1m"]);
        assert_eq!(propagation, []);
        assert_eq!(root, None);
    }

    #[test]
    fn propagation_types_are_returned() {
        let (kept, propagation, root) = prepared("rslave", json!(["sync", "nodev", "dirsync", "rshared"]));
        assert_eq!(kept, ["sync=", "nodev", "dirsync="]);
        let want = MountPropagation {
            destination: "/a".into(),
            options: vec!["rshared".into()],
        };
        assert_eq!(propagation, [want]);
        assert_eq!(root.as_deref(), Some("slave"));
        let (_, propagation, root) = prepared("rshared", json!(["rprivate"]));
        assert_eq!((propagation.len(), root.as_deref()), (1, Some("shared")));
    }
}
