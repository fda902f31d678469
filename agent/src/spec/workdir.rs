//! Where a container's working directory lies in the shared file system. The helper creates it there before
//! it creates the container: later, the mount it lies in may be read-only. Pure; `runtime::workdir` does the
//! work.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use serde::{Deserialize, Serialize};

use super::{guest_uid, normalize};

/// A working directory to create if it is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingDirectory {
    /// The directory that `path` is below: the container's root, or the source of a bind mount.
    pub tree: PathBuf,
    /// The path in `tree`.
    pub path: PathBuf,
    /// The owner of a directory that is created: the container's root user, as the guest numbers users.
    pub owner: u32,
}

/// The working directory of `spec`; None if it lies in a file system that libcontainer mounts later.
pub fn working_directory(spec: &Spec) -> Option<WorkingDirectory> {
    let cwd = normalize(spec.process().as_ref()?.cwd());
    let destination = |mount: &Mount| Path::new("/").join(mount.destination());
    // The last mount over a path hides the others.
    let mut mounts = spec.mounts().iter().flatten().rev();
    let (tree, path) = match mounts.find(|mount| cwd.starts_with(destination(mount))) {
        None => (spec.root().as_ref()?.path().clone(), cwd),
        Some(mount) if mount.typ().as_deref() == Some("bind") => {
            let path = cwd.strip_prefix(destination(mount)).ok()?;
            (mount.source().clone()?, path.to_owned())
        }
        Some(_) => return None,
    };
    let owner = guest_uid(spec, 0);
    Some(WorkingDirectory { tree, path, owner })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_the_root_or_the_bind_mount_over_it() {
        let of = |cwd: &str| {
            let spec = serde_json::json!({"ociVersion": "1.0", "root": {"path": "/root"},
                "process": {"cwd": cwd, "user": {"uid": 0, "gid": 0}, "args": ["a"]},
                "mounts": [{"destination": "/a", "type": "bind", "source": "/volume"},
                    {"destination": "/a/b", "type": "tmpfs"}]});
            let found = working_directory(&serde_json::from_value(spec).unwrap())?;
            assert_eq!(found.owner, 0);
            Some((found.tree, found.path))
        };
        for (cwd, tree, path) in [
            ("/x/../y", "/root", "/y"),
            ("/ab", "/root", "/ab"),
            ("/a/c/d", "/volume", "c/d"),
            ("/a", "/volume", ""),
        ] {
            assert_eq!(of(cwd), Some((tree.into(), path.into())), "{cwd}");
        }
        assert_eq!(of("/a/b/c"), None);
    }
}
