//! Decides, in a helper and before it creates a container, where the container's mounts and its working directory
//! are: links in their paths are followed as the container will see them, in the order of the mounts and as runc
//! does, because libcontainer follows only those that lead somewhere. Changes the spec; makes nothing.

mod view;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use self::view::{Content, Found, View};
use super::late::Late;
use super::workdir::WorkingDirectory;
use crate::spec::{guest_uid, normalize};

const DEV: &str = "/dev";
/// The devices that libcontainer makes in each container.
const DEFAULT_DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// What remains to be done for a spec whose mounts have their places.
#[derive(Debug, Default, PartialEq)]
pub struct Arranged {
    /// The working directory to make before the mounts.
    pub working_directory: Option<WorkingDirectory>,
    /// What libcontainer would do too early, or not at all.
    pub late: Late,
}

/// Gives the mounts of `spec` their places.
///
/// # Errors
/// The field of the spec that can't be honoured, and why.
pub fn arrange(spec: &mut Spec) -> Result<Arranged, (&'static str, String)> {
    let Some(root) = spec.root().as_ref().map(|root| root.path().clone()) else {
        return Err(("root", "is missing".to_owned()));
    };
    let mut view = View::new(root);
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        place(mount, &mut view).map_err(|error| {
            let destination = mount.destination().display();
            ("mounts", format!("destination {destination}: {error}"))
        })?;
    }
    let late_mounts = take_late(&mut mounts, &devices(spec));
    spec.set_mounts(Some(mounts));
    let cwd = spec.process().as_ref().map(|process| normalize(process.cwd()));
    let (working_directory, late_cwd) = match cwd {
        Some(cwd) => working_directory(&cwd, &view, guest_uid(spec, 0))
            .map_err(|error| ("process.cwd", format!("{}: {error}", cwd.display())))?,
        None => (None, None),
    };
    let late = Late {
        mounts: late_mounts,
        working_directory: late_cwd,
    };
    Ok(Arranged {
        working_directory,
        late,
    })
}

/// Gives one mount its place, and a tmpfs without a mode that of the directory that it covers.
fn place(mount: &mut Mount, view: &mut View) -> std::io::Result<()> {
    let kind = mount.typ().clone().unwrap_or_default();
    // These must be on a directory of their own, and libcontainer refuses a link.
    if kind != "proc" && kind != "sysfs" {
        mount.set_destination(view.resolve(mount.destination())?);
    }
    let has = |wanted: &[&str]| {
        let mut options = mount.options().iter().flatten();
        options.any(|option| wanted.contains(&option.as_str()))
    };
    let content = if kind == "bind" || has(&["bind", "rbind"]) {
        Content::Tree(mount.source().clone().unwrap_or_default())
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
        && content == Content::Empty
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

/// Paths of the devices that libcontainer makes, and fails to if a mount is there.
fn devices(spec: &Spec) -> Vec<PathBuf> {
    let named = spec.linux().as_ref().and_then(|linux| linux.devices().clone());
    let named = named.into_iter().flatten().map(|device| normalize(device.path()));
    let default = DEFAULT_DEVICES.iter().map(|name| Path::new(DEV).join(name));
    default.chain(named).collect()
}

/// Takes out the mounts that come after libcontainer has made its devices and links in /dev: those on one of
/// `devices`, and a directory that the spec binds to /dev, with what follows there. Nothing is made in such a
/// directory: libcontainer gets a tmpfs instead.
fn take_late(mounts: &mut Vec<Mount>, devices: &[PathBuf]) -> Vec<Mount> {
    let is_dev = |mount: &Mount| mount.destination() == Path::new(DEV);
    let is_bind = |mount: &Mount| mount.typ().as_deref() == Some("bind");
    let bound = mounts.iter().rposition(|mount| is_dev(mount) && is_bind(mount));
    let mut late = Vec::new();
    let mut index = 0;
    mounts.retain(|mount| {
        let follows = bound.is_some_and(|bound| index >= bound) && mount.destination().starts_with(DEV);
        let is_late = follows || devices.contains(mount.destination());
        index += 1;
        if is_late {
            late.push(mount.clone());
        }
        !is_late
    });
    if bound.is_some() && !mounts.iter().any(|mount| is_dev(mount) && !is_bind(mount)) {
        let mut dev = Mount::default();
        dev.set_destination(DEV.into());
        dev.set_typ(Some("tmpfs".to_owned()));
        dev.set_source(Some("tmpfs".into()));
        dev.set_options(Some(Vec::new()));
        // Before what the spec mounts below /dev and this hides.
        mounts.insert(0, dev);
    }
    late
}

/// The working directory `cwd`: to be made in a directory that exists, or in a mount that does not exist yet.
fn working_directory(
    cwd: &Path,
    view: &View,
    owner: u32,
) -> std::io::Result<(Option<WorkingDirectory>, Option<PathBuf>)> {
    let resolved = view.resolve_to_make(cwd)?;
    let (content, path) = view.mount_of(&resolved);
    Ok(match content {
        Content::Tree(tree) => {
            let directory = WorkingDirectory {
                tree: tree.clone(),
                path: path.to_owned(),
                owner,
            };
            (Some(directory), None)
        }
        Content::Empty if view.look(&resolved)? == Found::Missing => (None, Some(resolved)),
        Content::Empty | Content::Kernel => (None, None),
    })
}

#[cfg(test)]
mod tests;
