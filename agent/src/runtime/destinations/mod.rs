//! Decides, before a container's mounts are made, where they and its working directory are: links in their
//! paths are followed as the container will see them, in the order of the mounts and as runc does. Changes
//! the spec; makes nothing.

mod view;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use self::view::{Content, Found, View};
use super::mounts::bind_dev;
use super::options::COPY_UP;
use super::workdir::WorkingDirectory;
use crate::child::Failure;
use crate::spec::{guest_uid, normalize};

/// What remains to be done for a spec whose mounts have their places.
#[derive(Debug, Default, PartialEq)]
pub struct Arranged {
    /// The working directory to make before the mounts.
    pub working_directory: Option<WorkingDirectory>,
    /// The working directory to make in a mount, once that exists.
    pub working_directory_in_mount: Option<PathBuf>,
    /// A directory is bound to /dev.
    pub binds_dev: bool,
}

/// Gives the mounts of `spec` their places.
///
/// # Errors
/// The field of the spec that can't be honoured, and why.
pub fn arrange(spec: &mut Spec) -> Result<Arranged, Failure> {
    let Some(root) = spec.root().as_ref().map(|root| root.path().clone()) else {
        return Err(Failure::Field("root", "is missing".to_owned()));
    };
    let mut view = View::new(root);
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let binds_dev = bind_dev(&mounts);
    for mount in &mut mounts {
        place(mount, &mut view).map_err(|error| {
            let destination = mount.destination().display();
            Failure::Field("mounts", format!("destination {destination}: {error}"))
        })?;
    }
    spec.set_mounts(Some(mounts));
    let Some(cwd) = spec.process().as_ref().map(|process| normalize(process.cwd())) else {
        return Ok(Arranged {
            binds_dev,
            ..Arranged::default()
        });
    };
    let arranged = working_directory(&cwd, &view, guest_uid(spec, 0))
        .map_err(|error| Failure::Field("process.cwd", format!("{}: {error}", cwd.display())))?;
    Ok(Arranged {
        binds_dev,
        ..arranged
    })
}

/// Gives one mount its place, and a tmpfs without a mode that of the directory that it covers.
fn place(mount: &mut Mount, view: &mut View) -> std::io::Result<()> {
    let kind = mount.typ().clone().unwrap_or_default();
    // These must be on a directory of their own: a link there is refused.
    if kind != "proc" && kind != "sysfs" {
        mount.set_destination(view.resolve(mount.destination())?);
    }
    let has = |wanted: &[&str]| {
        let mut options = mount.options().iter().flatten();
        options.any(|option| wanted.contains(&option.as_str()))
    };
    let content = if kind == "bind" || has(&["bind", "rbind"]) {
        Content::Tree(mount.source().clone().unwrap_or_default())
    } else if kind == "tmpfs" && has(&[COPY_UP]) {
        Content::Copy
    } else if kind == "tmpfs" || kind == "ramfs" {
        Content::Empty
    } else {
        Content::Kernel
    };
    let has_mode = mount
        .options()
        .iter()
        .flatten()
        .any(|option| option.starts_with("mode="));
    if kind == "tmpfs"
        && matches!(content, Content::Empty | Content::Copy)
        && !has_mode
        && let Found::Directory { mode } = view.look(mount.destination())?
    {
        let mut options = mount.options().clone().unwrap_or_default();
        options.push(format!("mode={mode:o}"));
        mount.set_options(Some(options));
    }
    view.mount(&mount.destination().clone(), content);
    Ok(())
}

/// The working directory `cwd`: to be made in a directory that exists, or in a mount that does not exist yet.
fn working_directory(cwd: &Path, view: &View, owner: u32) -> std::io::Result<Arranged> {
    let resolved = view.resolve_to_make(cwd)?;
    let (content, path) = view.mount_of(&resolved);
    let mut arranged = Arranged::default();
    match content {
        Content::Tree(tree) => {
            arranged.working_directory = Some(WorkingDirectory {
                tree: tree.clone(),
                path: path.to_owned(),
                owner,
            });
        }
        Content::Empty | Content::Copy if view.look(&resolved)? == Found::Missing => {
            arranged.working_directory_in_mount = Some(resolved);
        }
        Content::Empty | Content::Copy | Content::Kernel => {}
    }
    Ok(arranged)
}

#[cfg(test)]
mod tests;
