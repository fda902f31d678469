//! `linux.readonlyPaths` and `linux.maskedPaths`. Called by the child that becomes the init, inside of the
//! container's root; a path that does not exist is left out, as with runc.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Spec;
use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mount_attributes::Change;
use super::mounts::{FileSystem, attach};
use super::tree::Tree;
use crate::child::{Failure, at};
use crate::command::is_null;

const NULL: &str = "/dev/null";

/// Makes the read-only paths of `spec` read-only, and hides the masked ones.
pub fn restrict(spec: &Spec) -> Result<(), Failure> {
    let linux = spec.linux().as_ref();
    let list = |paths: Option<&Vec<String>>| paths.cloned().unwrap_or_default();
    let read_only = list(linux.and_then(|linux| linux.readonly_paths().as_ref()));
    let masked = list(linux.and_then(|linux| linux.masked_paths().as_ref()));
    if read_only.is_empty() && masked.is_empty() {
        return Ok(());
    }
    let root = Tree::open(Path::new("/")).map_err(at("root"))?;
    for path in &read_only {
        let failed = |error: String| Failure::Step(format!("linux.readonlyPaths: {path}: {error}"));
        if let Some(found) = find(&root, path).map_err(|error| failed(error.to_string()))? {
            make_read_only(&found).map_err(|error| failed(error.to_string()))?;
        }
    }
    let mut covers = Covers::default();
    for path in &masked {
        let failed = |error: String| Failure::Step(format!("linux.maskedPaths: {path}: {error}"));
        if let Some(found) = find(&root, path).map_err(|error| failed(error.to_string()))? {
            covers.mask(&root, &found).map_err(failed)?;
        }
    }
    Ok(())
}

fn find(root: &Tree, path: &str) -> Result<Option<OwnedFd>, Errno> {
    match root.find(Path::new(path), OFlags::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        found => found.map(Some),
    }
}

/// Mounts a read-only copy of what is there.
fn make_read_only(path: &OwnedFd) -> std::io::Result<()> {
    let copy = copy_of(path, OpenTreeFlags::AT_RECURSIVE)?;
    Change::set(libc::MOUNT_ATTR_RDONLY).apply(copy.as_fd(), false)?;
    Ok(attach(&copy, path)?)
}

fn copy_of(path: &OwnedFd, more: OpenTreeFlags) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(path, "", flags | OpenTreeFlags::AT_EMPTY_PATH | more)
}

/// What is mounted on masked paths, once it was needed.
#[derive(Default)]
struct Covers {
    /// The mount of an empty directory that is attached. Others are its copies: it costs a file system.
    directory: Option<OwnedFd>,
    /// The null device of the container.
    null: Option<OwnedFd>,
}

impl Covers {
    /// Mounts an empty directory on a directory, and /dev/null on anything else.
    fn mask(&mut self, root: &Tree, path: &OwnedFd) -> Result<(), String> {
        let failed = |error: Errno| error.to_string();
        let stat = fstat(path).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            let null = match self.null.take() {
                Some(null) => null,
                None => find_null(root)?,
            };
            let copy = copy_of(&null, OpenTreeFlags::empty()).map_err(failed)?;
            self.null = Some(null);
            return attach(&copy, path).map_err(failed);
        }
        if let Some(mounted) = &self.directory {
            let copy = copy_of(mounted, OpenTreeFlags::empty()).map_err(failed)?;
            // Not a peer of the other, should that be shared: what is mounted on one must not appear on the
            // other.
            let private = Change::propagation(libc::MS_PRIVATE).apply(copy.as_fd(), false);
            private.map_err(|error| error.to_string())?;
            return attach(&copy, path).map_err(failed);
        }
        let tmpfs = FileSystem {
            kind: "tmpfs",
            source: Path::new("tmpfs"),
            parameters: &[],
            attributes: libc::MOUNT_ATTR_RDONLY,
        };
        let mounted = tmpfs.make()?;
        attach(&mounted, path).map_err(failed)?;
        self.directory = Some(mounted);
        Ok(())
    }
}

fn find_null(root: &Tree) -> Result<OwnedFd, String> {
    let null = root.find(Path::new(NULL), OFlags::empty());
    let null = null.map_err(|error| error.to_string())?;
    if is_null(&null) {
        Ok(null)
    } else {
        Err(format!("{NULL} of the container is not the null device"))
    }
}
