//! Prepares a container's mounts: their destinations, and their propagation types, which are set once all
//! mounts exist and are returned as [`MountPropagation`].

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, Mount, Spec};

/// The propagation types to set on a mount once it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPropagation {
    /// The mount point in the container.
    pub destination: PathBuf,
    /// Mount options such as `rslave`, in the spec's order.
    pub options: Vec<String>,
}

/// Prepares the mounts of `spec` and the `rootfsPropagation` of `linux`. Returns the propagation types to
/// set.
pub fn prepare(spec: &mut Spec, linux: &mut Linux) -> Vec<MountPropagation> {
    // Each is applied to all mounts.
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
    for option in mount.options().iter().flatten() {
        match option.as_str() {
            // A mount is private already unless its parent is shared.
            "private" | "rprivate" if !is_shared => {}
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" | "unbindable"
            | "runbindable" => propagation.options.push(option.clone()),
            _ => {}
        }
    }
    propagation
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn prepared(root: &str, options: Value) -> (Vec<MountPropagation>, Option<String>) {
        let mut spec: Spec =
            serde_json::from_value(json!({"ociVersion": "1.0", "linux": {"rootfsPropagation": root},
            "mounts": [{"destination": "/a", "type": "tmpfs", "options": options}]}))
            .unwrap();
        let mut linux = spec.linux().clone().unwrap();
        let propagation = prepare(&mut spec, &mut linux);
        (propagation, linux.rootfs_propagation().clone())
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
    fn propagation_types_are_returned() {
        assert_eq!(prepared("", json!(["ro", "rprivate", "size=1m"])), (vec![], None));
        let (propagation, root) = prepared("rslave", json!(["nodev", "rshared"]));
        let want = MountPropagation {
            destination: "/a".into(),
            options: vec!["rshared".into()],
        };
        assert_eq!(propagation, [want]);
        assert_eq!(root.as_deref(), Some("slave"));
        let (propagation, root) = prepared("rshared", json!(["rprivate"]));
        assert_eq!((propagation.len(), root.as_deref()), (1, Some("shared")));
    }
}
