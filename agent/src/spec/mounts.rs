//! The options of a container's mounts: those that libcontainer does not know are said in its words, or done after it.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, Mount, Spec};
use serde::{Deserialize, Serialize};

/// What is to be done with a mount once it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Later {
    /// Where it is in the container.
    pub destination: PathBuf,
    /// The words for how it shares what is mounted below.
    pub propagation: Vec<String>,
}

/// Rewrites the mounts of `spec` for libcontainer; what is left to be done after it.
pub fn prepare(spec: &mut Spec, linux: &mut Linux) -> Vec<Later> {
    // What it knows is recursive anyway.
    let propagation = linux.rootfs_propagation().clone().unwrap_or_default();
    let plain = propagation.strip_prefix('r').unwrap_or(&propagation);
    let is_shared = plain == "shared";
    linux.set_rootfs_propagation(Some(plain.to_owned()).filter(|word| !word.is_empty()));
    let mut later = Vec::new();
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let one = rewrite(mount, is_shared);
        if !one.propagation.is_empty() {
            later.push(one);
        }
    }
    later
}

/// `path` without steps up: as text, from the root, whatever is there.
pub fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

fn rewrite(mount: &mut Mount, is_shared: bool) -> Later {
    mount.set_destination(clean(mount.destination()));
    let mut later = Later {
        destination: mount.destination().clone(),
        propagation: Vec::new(),
    };
    let mut kept = Vec::new();
    for option in mount.options().iter().flatten() {
        match option.as_str() {
            // It drops these words, but hands over what it takes for settings of the file system, which they are.
            "sync" | "dirsync" => kept.push(format!("{option}=")),
            // They are so already, unless their parent is shared.
            "private" | "rprivate" if !is_shared => {}
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" | "unbindable"
            | "runbindable" => {
                later.propagation.push(option.clone());
            }
            // Said of a new mount, with nothing below, it is the same; below a bind, it is one more safeguard.
            "nosymfollow" | "symfollow" => kept.push(format!("r{option}")),
            "noiversion" => {}
            _ => kept.push(option.clone()),
        }
    }
    mount.set_options(Some(kept));
    if mount.source().is_none() {
        // It is a name alone, but libcontainer wants one.
        let name = mount.typ().clone().unwrap_or_default();
        mount.set_source(Some(PathBuf::from(name)));
    }
    later
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn prepared(root: &str, options: Value) -> (Vec<String>, Vec<Later>, Option<String>) {
        let mut spec: Spec =
            serde_json::from_value(json!({"ociVersion": "1.0", "linux": {"rootfsPropagation": root},
            "mounts": [{"destination": "/a", "type": "tmpfs", "options": options}]}))
            .unwrap();
        let mut linux = spec.linux().clone().unwrap();
        let later = prepare(&mut spec, &mut linux);
        let options = spec.mounts().as_ref().unwrap()[0].options().clone().unwrap();
        (options, later, linux.rootfs_propagation().clone())
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
            assert_eq!(clean(Path::new(path)), Path::new(want), "{path}");
        }
    }

    #[test]
    fn what_libcontainer_knows_is_left_to_it() {
        let options = json!(["ro", "rprivate", "nosymfollow", "noiversion", "size=1m"]);
        let (kept, later, root) = prepared("", options);
        assert_eq!(kept, ["ro", "rnosymfollow", "size=1m"]);
        assert_eq!(later, []);
        assert_eq!(root, None);
    }

    #[test]
    fn the_rest_is_done_later() {
        let (kept, later, root) = prepared("rslave", json!(["sync", "nodev", "dirsync", "rshared"]));
        assert_eq!(kept, ["sync=", "nodev", "dirsync="]);
        let want = Later {
            destination: "/a".into(),
            propagation: vec!["rshared".into()],
        };
        assert_eq!(later, [want]);
        assert_eq!(root.as_deref(), Some("slave"));
        let (_, later, root) = prepared("rshared", json!(["rprivate"]));
        assert_eq!((later.len(), root.as_deref()), (1, Some("shared")));
    }
}
