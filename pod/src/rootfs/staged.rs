//! Overlay mounts with more layers than fsconfig(2) takes in one string (255 bytes, about 25 layers). A
//! forked child mounts them by mount(2), which takes a page of options, in a mount namespace that nothing
//! else uses, and sends a detached clone back. The mount never appears on the host.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nacre_protocol::control::Channel;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::Error;
use crate::sys;

/// mount(2) takes one page of options, including the terminating NUL.
const MAX_OPTIONS: usize = 4095;

/// A detached overlay mount with `options` (in mount(8)'s notation), whose paths are relative to `base`.
pub async fn overlay(base: &Path, options: &str) -> Result<OwnedFd, Error> {
    if options.len() > MAX_OPTIONS {
        let source = std::io::Error::from_raw_os_error(libc::E2BIG);
        let what = format!(
            "overlay of layers in {}: {} bytes of options, mount(2) takes {MAX_OPTIONS}",
            base.display(),
            options.len()
        );
        return Err(Error::Path { what, source });
    }
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(|error| Error::Child(error.into()))?;
    sys::in_child(move || {
        let made = make(base, options)
            .map_err(|error| format!("overlay of {options} in {}: {error}", base.display()))?;
        Channel::new(theirs)
            .send(&(), &[made.as_raw_fd()])
            .map_err(|error| error.to_string())
    })
    .await
    .map_err(Error::Child)?
    .map_err(Error::Staged)?;
    let received = Channel::new(ours)
        .receive::<()>()
        .map_err(|error| Error::Staged(error.to_string()))?;
    received
        .1
        .into_iter()
        .next()
        .ok_or_else(|| Error::Staged("the child process sent no mount".into()))
}

/// The child's part. The overlay is mounted over `base` itself: a directory that exists, and in this
/// namespace nothing else looks into it.
fn make(base: &Path, options: &str) -> std::io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )?;
    nix::unistd::chdir(base)?;
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
