//! Overlay mounts that a forked child makes in a mount namespace that nothing else uses, and sends back as
//! detached clones: those with more layers than fsconfig(2) takes in one string (255 bytes, about 25 layers;
//! mount(2) takes a page of options), and those of id-mapped layers, which must be attached somewhere. The
//! mounts never appear on the host.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::Error;
use crate::sys;

/// mount(2) takes one page of options, including the terminating NUL.
const MAX_OPTIONS: usize = 4095;

/// The lower layers of an overlay and the user namespace with their id map.
#[derive(Debug, Clone, Copy)]
pub struct Mapped<'a> {
    /// Absolute paths, or relative to the overlay's base.
    pub layers: &'a [PathBuf],
    /// The user namespace.
    pub ids: &'a OwnedFd,
}

/// A detached overlay mount with `options` (in mount(8)'s notation), whose paths may be relative to `base`. The
/// layers of `mapped` are id-mapped.
pub async fn overlay(base: &Path, options: &str, mapped: Option<Mapped<'_>>) -> Result<OwnedFd, Error> {
    if options.len() > MAX_OPTIONS {
        let source = std::io::Error::from_raw_os_error(libc::E2BIG);
        let what = format!(
            "overlay of layers in {}: {} bytes of options, mount(2) takes {MAX_OPTIONS}",
            base.display(),
            options.len()
        );
        return Err(Error::Path { what, source });
    }
    let made = sys::in_child_with_files(|| {
        let made = make(base, options, mapped);
        made.map(|mount| ((), vec![mount]))
            .map_err(|error| format!("overlay of {options} in {}: {error}", base.display()))
    });
    let ((), made) = made.await.map_err(Error::Child)?.map_err(Error::Staged)?;
    let mount = made.into_iter().next();
    mount.ok_or_else(|| Error::Staged("the child process sent no mount".into()))
}

/// The child's part. The overlay is mounted over `base` itself: a directory that exists, and in this
/// namespace nothing else looks into it.
fn make(base: &Path, options: &str, mapped: Option<Mapped<'_>>) -> std::io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )?;
    nix::unistd::chdir(base)?;
    if let Some(Mapped { layers, ids }) = mapped {
        layers.iter().try_for_each(|layer| cover(layer, ids))?;
    }
    mount(
        Some("overlay"),
        base,
        Some("overlay"),
        MsFlags::empty(),
        Some(options),
    )?;
    Ok(open_tree(
        CWD,
        base,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?)
}

/// Mounts `layer` over itself, id-mapped.
fn cover(layer: &Path, ids: &OwnedFd) -> std::io::Result<()> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mapped = open_tree(CWD, layer, clone)?;
    sys::map_ids(&mapped, ids, false)?;
    let from_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&mapped, "", CWD, layer, from_descriptor)?)
}
