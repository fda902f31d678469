//! The directory in which a container's command begins: made where the image does not have it, as runc does. libcontainer
//! only looks for it. Done before the container is made: by then, the place may be read-only.

use std::fs::Permissions;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use pathrs::Root;
use rustix::fs::{Gid, Uid};

use crate::error::Error;
use crate::spec::{guest_uid, normalize};

/// Makes the working directory of `spec`, in its root or in the bind that it lies in.
pub fn make(spec: &Spec) -> Result<(), Error> {
    let Some((root, path)) = place(spec) else {
        return Ok(());
    };
    let failed = |error: &dyn std::error::Error| {
        let cause = error
            .source()
            .map(|cause| format!(": {cause}"))
            .unwrap_or_default();
        Error::BadSpec {
            field: "process.cwd",
            reason: format!("making it: {error}{cause}"),
        }
    };
    let root = Root::open(root).map_err(|error| failed(&error))?;
    if let Ok(there) = root.resolve(&path) {
        let stat = rustix::fs::fstat(&there).map_err(|error| failed(&error))?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Ok(());
        }
        return Err(Error::BadSpec {
            field: "process.cwd",
            reason: format!("{}: not a directory", path.display()),
        });
    }
    let made = root
        .mkdir_all(&path, &Permissions::from_mode(0o755))
        .map_err(|error| failed(&error))?;
    let owner = guest_uid(spec, 0);
    if owner != 0 {
        let directory = made
            .reopen(pathrs::flags::OpenFlags::O_DIRECTORY)
            .map_err(|error| failed(&error))?;
        rustix::fs::fchown(
            directory.as_fd(),
            Some(Uid::from_raw(owner)),
            Some(Gid::from_raw(owner)),
        )
        .map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// The tree that the working directory lies in, and its path there; None where nothing can be made: in a file system that
/// is not there yet.
fn place(spec: &Spec) -> Option<(PathBuf, PathBuf)> {
    let cwd = &normalize(spec.process().as_ref()?.cwd());
    let mounts = spec.mounts().iter().flatten();
    let destination = |mount: &oci_spec::runtime::Mount| Path::new("/").join(mount.destination());
    // The last of those that cover it is the one that is seen.
    let covering = mounts.rev().find(|mount| cwd.starts_with(destination(mount)));
    match covering {
        None => Some((spec.root().as_ref()?.path().clone(), cwd.clone())),
        Some(mount) if mount.typ().as_deref() == Some("bind") => {
            let rest = cwd.strip_prefix(destination(mount)).ok()?;
            Some((mount.source().clone()?, rest.to_owned())).filter(|(source, _)| source.is_dir())
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_place_is_the_root_or_the_bind_that_covers_it() {
        let source = tempfile::tempdir().unwrap();
        let place = |cwd: &str| {
            let spec = serde_json::json!({"ociVersion": "1.0", "root": {"path": "/root"},
                "process": {"cwd": cwd, "user": {"uid": 0, "gid": 0}, "args": ["a"]},
                "mounts": [{"destination": "/a", "type": "bind", "source": source.path()},
                    {"destination": "/a/b", "type": "tmpfs"}, {"destination": "/f", "type": "bind", "source": "/etc/passwd"}]});
            super::place(&serde_json::from_value(spec).unwrap())
        };
        assert_eq!(place("/x/y"), Some(("/root".into(), "/x/y".into())));
        assert_eq!(place("/a/c/d"), Some((source.path().to_owned(), "c/d".into())));
        assert_eq!(place("/ab"), Some(("/root".into(), "/ab".into())));
        assert_eq!(place("/a/b/c"), None);
        assert_eq!(place("/f/x"), None);
    }
}
