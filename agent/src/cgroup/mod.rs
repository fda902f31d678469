//! A container's cgroup (v2): its processes, its limits, its end. libcontainer makes it.
//! Used by the container's life; never touches a cgroup that is not a container's.

mod counters;
pub mod limits;

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};

use tokio::io::Interest;

use self::limits::Setting;
use crate::error::Error;
use crate::watched;

/// Where cgroup2 is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// One container's cgroup, with all below it.
#[derive(Debug, Clone)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// The cgroup at `path`, absolute as in `/proc/<pid>/cgroup`.
    pub fn new(path: &Path) -> Self {
        Self(Path::new(ROOT).join(path.strip_prefix("/").unwrap_or(path)))
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// Sets limits, one after the other; the others stay.
    ///
    /// # Errors
    /// [`Error::BadSpec`] with the field that can't be honoured; those before it are set.
    pub fn apply(&self, limits: &[Setting]) -> Result<(), Error> {
        limits::write(&self.0, limits)
    }

    /// All processes in it and below.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        let mut pids = Vec::new();
        for directory in tree(&self.0)? {
            let file = directory.join("cgroup.procs");
            match fs::read_to_string(&file) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
                Err(error) if gone(&error) => {}
                Err(error) => return Err(Error::file("reading", file)(error)),
            }
        }
        Ok(pids)
    }

    /// Kills every process in it and below.
    pub fn kill(&self) -> Result<(), Error> {
        let file = self.0.join("cgroup.kill");
        match fs::write(&file, "1") {
            Err(error) if !gone(&error) => Err(Error::file("writing", file)(error)),
            _ => Ok(()),
        }
    }

    /// Kills what is in it, waits until that has ended, and removes it.
    pub async fn remove(&self) -> Result<(), Error> {
        self.kill()?;
        self.wait_until_empty()
            .await
            .map_err(Error::file("waiting for the end of", &self.0))?;
        for directory in tree(&self.0)?.iter().rev() {
            match fs::remove_dir(directory) {
                Err(error) if !gone(&error) => return Err(Error::file("removing", directory)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    async fn wait_until_empty(&self) -> io::Result<()> {
        self.wait_for_event(|line| line == "populated 0").await
    }

    /// Freezes all processes in it and below, and waits until they are frozen; or has them go on.
    pub async fn freeze(&self, frozen: bool) -> Result<(), Error> {
        self.begin_freeze(frozen)?;
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        self.wait_for_event(|line| line == wanted)
            .await
            .map_err(Error::file("waiting for a change of", &self.0))
    }

    /// As [`Cgroup::freeze`], without waiting.
    pub fn begin_freeze(&self, frozen: bool) -> Result<(), Error> {
        let file = self.0.join("cgroup.freeze");
        fs::write(&file, if frozen { "1" } else { "0" }).map_err(Error::file("writing", file))
    }

    /// Waits until cgroup.events has a line that `wanted` is true of, or the cgroup is no more.
    async fn wait_for_event(&self, wanted: impl Fn(&str) -> bool) -> io::Result<()> {
        let file = match File::open(self.0.join("cgroup.events")) {
            Err(error) if gone(&error) => return Ok(()),
            file => file?,
        };
        let events = watched::watch_for(file, Interest::PRIORITY)?;
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

/// A cgroup that is no more: that its files are missing, or that they have lost their group while open.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// `directory` and all directories below it, parents first.
fn tree(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut next = vec![directory.to_owned()];
    while let Some(directory) = next.pop() {
        let entries = match fs::read_dir(&directory) {
            Err(error) if gone(&error) => continue,
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
    fn a_tree_lists_parents_first_and_a_missing_one_is_empty() {
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
