//! The templates of this host: waits until one was made. Tests of templates and the benchmark call it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use nacre_protocol::state::{STATE_ROOT, TEMPLATES_DIR};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::containerd::ctr::{DEADLINE, wait_readable};

/// The origin of the first pod of a kind, as `nacre inspect` shows it.
pub const NONE_YET: &str = "boot: there is no template for this kind of pod yet";

/// The directory of all templates.
#[must_use]
pub fn directory() -> PathBuf {
    PathBuf::from(STATE_ROOT).join(TEMPLATES_DIR)
}

/// The directory of templates, which is watched for one that appears.
pub struct Appears {
    inotify: Inotify,
}

impl Appears {
    /// Watches from now on.
    ///
    /// # Errors
    /// If no template was ever made on this host, so that there is no directory.
    pub fn watch() -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        inotify
            .add_watch(&directory(), AddWatchFlags::IN_MOVED_TO)
            .context("watching the directory of templates")?;
        Ok(Self { inotify })
    }

    /// Waits for the template; returns its directory.
    ///
    /// # Errors
    /// If none appears in time.
    pub fn wait(&self) -> Result<PathBuf> {
        let until = Instant::now() + DEADLINE;
        loop {
            wait_readable(&self.inotify, until).context("no template appears")?;
            // One that is removed is renamed, too.
            let is_template = |name: &OsString| !name.to_string_lossy().contains('.');
            let events = self.inotify.read_events()?.into_iter();
            if let Some(name) = events.filter_map(|event| event.name).find(is_template) {
                return Ok(directory().join(name));
            }
        }
    }
}
