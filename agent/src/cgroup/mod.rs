//! A container's cgroup (v2): makes it, lists and kills its processes, freezes it, applies limits, removes
//! it. Called by `container`, `runtime` and `exec`; never touches a cgroup that does not belong to a
//! container, but to enable controllers for those below.

mod counters;
pub mod limits;
pub mod writer;

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;

use self::limits::Setting;
use crate::async_fd;
use crate::error::Error;

/// The mount point of the cgroup2 file system in the guest.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The cgroup of one container, with its descendants. Holds the directory's path.
#[derive(Debug, Clone)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// The cgroup at `path`, relative to the root cgroup, in the form of `/proc/<pid>/cgroup` (`/a/b`).
    pub fn new(path: &Path) -> Self {
        Self(Path::new(ROOT).join(path.strip_prefix("/").unwrap_or(path)))
    }

    /// The cgroup's directory below [`ROOT`].
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// Makes it, with those above it, where all controllers are enabled that the guest has.
    ///
    /// # Errors
    /// If a directory can't be made.
    pub fn create(&self) -> Result<(), Error> {
        let root = Path::new(ROOT);
        let below = self.0.strip_prefix(root).unwrap_or(&self.0);
        let mut directory = root.to_owned();
        for name in below {
            enable_controllers(&directory);
            directory.push(name);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::file("creating", &directory)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Opens the directory, for clone3(2).
    ///
    /// # Errors
    /// ENOENT if the cgroup was removed.
    pub fn open(&self) -> Result<OwnedFd, Error> {
        open_directory(&self.0)
    }

    /// Applies `limits` in order. Limits that are not in the list do not change.
    ///
    /// # Errors
    /// [`Error::BadSpec`] with the first field that the kernel refuses; the limits before it stay applied.
    pub fn apply(&self, limits: &[Setting]) -> Result<(), Error> {
        limits::apply(&self.0, limits)
    }

    /// As [`Cgroup::apply`], while processes run in the cgroup: the kernel may have to reclaim their memory.
    pub async fn update(&self, limits: &[Setting]) -> Result<(), Error> {
        limits::update(&self.0, limits).await
    }

    /// The pids of all processes in the cgroup and its descendants, as the guest numbers them.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        let mut pids = Vec::new();
        for directory in tree(&self.0)? {
            let file = directory.join("cgroup.procs");
            match fs::read_to_string(&file) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
                Err(error) if is_removed(&error) => {}
                Err(error) => return Err(Error::file("reading", file)(error)),
            }
        }
        Ok(pids)
    }

    /// Sends SIGKILL to every process in the cgroup and its descendants. Does nothing if the cgroup was
    /// removed.
    pub fn kill(&self) -> Result<(), Error> {
        let file = self.0.join("cgroup.kill");
        match fs::write(&file, "1") {
            Err(error) if !is_removed(&error) => Err(Error::file("writing", file)(error)),
            _ => Ok(()),
        }
    }

    /// Kills all processes, waits until they have exited, and removes the cgroup with its descendants.
    pub async fn remove(&self) -> Result<(), Error> {
        self.kill()?;
        self.wait_until_empty().await.map_err(Error::file(
            "waiting for the processes to exit in cgroup",
            &self.0,
        ))?;
        for directory in tree(&self.0)?.iter().rev() {
            match fs::remove_dir(directory) {
                Err(error) if !is_removed(&error) => return Err(Error::file("removing", directory)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    async fn wait_until_empty(&self) -> io::Result<()> {
        self.wait_for_event(|line| line == "populated 0").await
    }

    /// Freezes (`true`) or thaws (`false`) the cgroup with its descendants, and waits until the kernel
    /// reports the change.
    pub async fn freeze(&self, frozen: bool) -> Result<(), Error> {
        self.begin_freeze(frozen)?;
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        self.wait_for_event(|line| line == wanted)
            .await
            .map_err(Error::file("waiting for the freezer of cgroup", &self.0))
    }

    /// Writes cgroup.freeze as [`Cgroup::freeze`] does, without waiting for the change.
    pub fn begin_freeze(&self, frozen: bool) -> Result<(), Error> {
        let file = self.0.join("cgroup.freeze");
        fs::write(&file, if frozen { "1" } else { "0" }).map_err(Error::file("writing", file))
    }

    /// Waits until `wanted` is true of a line of cgroup.events. Returns at once if the cgroup was removed.
    async fn wait_for_event(&self, wanted: impl Fn(&str) -> bool) -> io::Result<()> {
        let file = match File::open(self.0.join("cgroup.events")) {
            Err(error) if is_removed(&error) => return Ok(()),
            file => file?,
        };
        let events = async_fd::register_for(file, Interest::PRIORITY)?;
        loop {
            let mut text = String::new();
            events.get_ref().rewind()?;
            events.get_ref().read_to_string(&mut text)?;
            if text.lines().any(&wanted) {
                return Ok(());
            }
            events.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }
}

/// Opens the cgroup in `directory`, for clone3(2).
///
/// # Errors
/// ENOENT if it was removed.
pub fn open_directory(directory: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).map_err(Error::file("opening", directory))
}

/// Enables the controllers that `directory` has for the cgroups below it, unless some are enabled there. A
/// controller that can't be enabled is left out: setting a limit of it then names the file that is missing.
fn enable_controllers(directory: &Path) {
    let file = directory.join("cgroup.subtree_control");
    if fs::read_to_string(&file).is_ok_and(|enabled| !enabled.trim().is_empty()) {
        return;
    }
    let available = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    for name in available.split_whitespace() {
        let _ = fs::write(&file, format!("+{name}"));
    }
}

/// True if the cgroup was removed: ENOENT, or ENODEV on a file that was open.
fn is_removed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// `directory` and all directories below it, parents before children; empty if it does not exist.
fn tree(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut next = vec![directory.to_owned()];
    while let Some(directory) = next.pop() {
        let entries = match fs::read_dir(&directory) {
            Err(error) if is_removed(&error) => continue,
            entries => entries.map_err(Error::file("listing", &directory))?,
        };
        for entry in entries {
            let entry = entry.map_err(Error::file("listing", &directory))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                next.push(entry.path());
            }
        }
        found.push(directory);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_lists_parents_first_and_a_missing_directory_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        fs::write(directory.path().join("cgroup.procs"), "1\n").unwrap();
        fs::write(directory.path().join("a/b/cgroup.procs"), "2\n3\n").unwrap();
        let tree = tree(directory.path()).unwrap();
        assert_eq!(
            tree,
            [
                directory.path().to_owned(),
                directory.path().join("a"),
                directory.path().join("a/b")
            ]
        );
        assert_eq!(Cgroup(directory.path().to_owned()).pids().unwrap(), [1, 2, 3]);
        assert!(Cgroup("/no/such".into()).pids().unwrap().is_empty());
    }
}
