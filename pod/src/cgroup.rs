//! The pod's cgroup: a leaf in the cgroup2 file system, below the parent that the spec's cgroupsPath names.
//! The VMM is in it, and the shim of a Kubernetes pod while the VM runs. cgroupsPath may have either notation: a
//! path (cgroupfs), or "slice:prefix:name" (systemd), whose directories are made without D-Bus. A parent that had
//! to be made gets an extended attribute as a mark, and is removed with its last pod. Called by the sandbox and by
//! clean_up.

mod counters;
mod process;

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

use nacre_protocol::mountinfo::cgroup2_mount;
use rustix::event::PollFlags;
use rustix::fs::XattrFlags;

use crate::sys;
pub use process::{move_process, own_cgroup};

/// The extended attribute that marks parents made by a shim.
const MARK: &str = "user.nacre";
/// The parent of a pod without a cgroupsPath.
const DEFAULT_PARENT: &str = "nacre";
/// The controllers that a pod is limited and accounted by.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

/// Why a cgroup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no cgroup2 file system is mounted; mount one with: mount -t cgroup2 none /sys/fs/cgroup")]
    NoCgroup2,
    #[error("linux.cgroupsPath {path:?}: {reason}")]
    Path { path: String, reason: &'static str },
    #[error("cgroup {}: a killed process in it has not exited", .0.display())]
    Populated(PathBuf),
    #[error("cgroup {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, source }
}

/// The mount point of this host's cgroup2 file system.
///
/// # Errors
/// [`Error::NoCgroup2`] if none is mounted.
pub fn root() -> Result<PathBuf, Error> {
    // The usual mount point first: on a node with many pods mountinfo is long.
    let usual = Path::new("/sys/fs/cgroup");
    if rustix::fs::statfs(usual).is_ok_and(|stat| stat.f_type == libc::CGROUP2_SUPER_MAGIC) {
        return Ok(usual.to_owned());
    }
    let file = Path::new("/proc/self/mountinfo");
    let mountinfo = fs::read_to_string(file).map_err(at(file))?;
    cgroup2_mount(&mountinfo).ok_or(Error::NoCgroup2)
}

/// The parent of a pod's cgroup, relative to the root, by the spec's cgroupsPath.
///
/// # Errors
/// [`Error::Path`] if it has neither notation.
pub fn parent(cgroups_path: Option<&str>) -> Result<PathBuf, Error> {
    let Some(path) = cgroups_path.filter(|path| !path.is_empty()) else {
        return Ok(DEFAULT_PARENT.into());
    };
    let refuse = |reason| Error::Path {
        path: path.to_owned(),
        reason,
    };
    if let [slice, _, _] = *path.split(':').collect::<Vec<_>>() {
        return expand_slice(slice).ok_or_else(|| refuse("its first part is not the name of a slice"));
    }
    let mut parts = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(refuse("\"..\" is not allowed")),
        }
    }
    match parts.parent() {
        Some(parent) => Ok(parent.to_owned()),
        None => Err(refuse("it names the root cgroup")),
    }
}

/// The path of a slice (systemd.slice(5)): "a-b.slice" is in "a.slice"; "-.slice" is the root. None for an
/// invalid name.
fn expand_slice(slice: &str) -> Option<PathBuf> {
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(PathBuf::new());
    }
    let mut path = PathBuf::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() || part.contains('/') {
            return None;
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Some(path)
}

/// A pod's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup of the pod with `key`, whose spec has `cgroups_path`. Makes nothing yet.
    ///
    /// # Errors
    /// As [`root`] and [`parent`].
    pub fn plan(cgroups_path: Option<&str>, key: &str) -> Result<Self, Error> {
        let root = root()?;
        let path = root.join(parent(cgroups_path)?).join(format!("nacre-{key}"));
        Ok(Self { root, path })
    }

    /// The cgroup at `path`, which an earlier shim has made.
    ///
    /// # Errors
    /// As [`root`].
    pub fn at(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            root: root()?,
            path: path.to_owned(),
        })
    }

    /// The cgroup's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the cgroup and its missing parents; returns its directory, open, for `CLONE_INTO_CGROUP`.
    ///
    /// # Errors
    /// [`Error::File`] with the directory that could not be made.
    pub fn make(&self) -> Result<File, Error> {
        // Another pod's shim may remove a shared parent between two steps. One round per such pod.
        let mut rounds = 0;
        loop {
            match self.make_once() {
                Err(Error::File { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && rounds < 16 =>
                {
                    rounds += 1;
                }
                made => return made,
            }
        }
    }

    fn make_once(&self) -> Result<File, Error> {
        let relative = self.path.strip_prefix(&self.root).unwrap_or(&self.path);
        let mut directory = self.root.clone();
        for part in relative.components() {
            enable_controllers(&directory);
            directory.push(part);
            match fs::create_dir(&directory) {
                Ok(()) if directory != self.path => mark(&directory),
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(at(&directory)(error)),
            }
        }
        File::open(&self.path).map_err(at(&self.path))
    }

    /// Kills every process in the cgroup (cgroup.kill). Does nothing if the cgroup does not exist.
    ///
    /// # Errors
    /// [`Error::File`] if the file can't be written.
    pub fn kill(&self) -> Result<(), Error> {
        let file = self.path.join("cgroup.kill");
        match fs::write(&file, "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&file)(error)),
            _ => Ok(()),
        }
    }

    /// Waits until no process is left in it, by cgroup.events' `populated`, whose changes poll(2) reports
    /// (Documentation/ admin-guide/cgroup-v2.rst, "(Un)populated Notification"). A cgroup that was removed is
    /// empty.
    ///
    /// # Errors
    /// [`Error::Populated`] if a process is left at `deadline`; [`Error::File`] if the file can't be read.
    pub fn wait_until_empty(&self, deadline: Instant) -> Result<(), Error> {
        let file = self.path.join("cgroup.events");
        let mut events = match File::open(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(at(&file))?,
        };
        loop {
            let mut text = String::new();
            events.rewind().map_err(at(&file))?;
            match events.read_to_string(&mut text) {
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
                read => read.map_err(at(&file))?,
            };
            if text.lines().any(|line| line == "populated 0") {
                return Ok(());
            }
            if !sys::wait_for(&events, PollFlags::PRI, deadline).map_err(at(&file))? {
                return Err(Error::Populated(self.path.clone()));
            }
        }
    }

    /// Removes the cgroup, and marked parents that are empty then. Its processes must have exited.
    ///
    /// # Errors
    /// [`Error::File`] if the cgroup can't be removed.
    pub fn remove(&self) -> Result<(), Error> {
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&self.path)(error)),
            _ => {}
        }
        for directory in self
            .path
            .ancestors()
            .skip(1)
            .take_while(|path| *path != self.root && path.starts_with(&self.root))
        {
            // rmdir(2) fails with EBUSY if another pod's cgroup is in it.
            if !is_marked(directory) || fs::remove_dir(directory).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Enables [`CONTROLLERS`] for the children of `directory`. Failures are only logged: a hybrid hierarchy has
/// no controllers here, and a cgroup with processes accepts none; the pod then runs without limits or
/// accounting of that kind.
fn enable_controllers(directory: &Path) {
    let Ok(available) = fs::read_to_string(directory.join("cgroup.controllers")) else {
        return;
    };
    let file = directory.join("cgroup.subtree_control");
    let Ok(enabled) = fs::read_to_string(&file) else {
        return;
    };
    let has = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
    for name in CONTROLLERS
        .iter()
        .filter(|name| has(&available, name) && !has(&enabled, name))
    {
        if let Err(error) = fs::write(&file, format!("+{name}")) {
            crate::log::warn(format_args!("{}: +{name}: {error}", file.display()));
        }
    }
}

fn mark(directory: &Path) {
    if let Err(error) = rustix::fs::setxattr(directory, MARK, b"1", XattrFlags::CREATE) {
        crate::log::warn(format_args!(
            "marking {} for removal: {error}",
            directory.display()
        ));
    }
}

fn is_marked(directory: &Path) -> bool {
    rustix::fs::getxattr(directory, MARK, &mut [0_u8; 1]).is_ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_parent_is_found_in_both_notations() {
        for (path, want) in [
            (None, "nacre"),
            (Some(""), "nacre"),
            (Some("/default/id"), "default"),
            (Some("kubepods/besteffort/pod1/id"), "kubepods/besteffort/pod1"),
            (Some("/id"), ""),
            (Some("system.slice:containerd:id"), "system.slice"),
            (Some(":prefix:id"), "system.slice"),
            (Some("-.slice:p:id"), ""),
            (
                Some("kubepods-burstable-pod7.slice:cri-containerd:id"),
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice",
            ),
        ] {
            assert_eq!(parent(path).unwrap(), Path::new(want), "{path:?}");
        }
    }

    #[test]
    fn other_paths_are_refused() {
        for path in [
            "../x/y",
            "/a/../../b",
            "/",
            "a--b.slice:p:id",
            "nosuffix:p:id",
            "a/b.slice:p:id",
        ] {
            assert!(
                parent(Some(path))
                    .unwrap_err()
                    .to_string()
                    .contains("cgroupsPath"),
                "{path}"
            );
        }
    }

    #[test]
    fn a_process_that_has_not_exited_is_waited_for_until_the_deadline() {
        if !rustix::process::getuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let cgroup = Cgroup::plan(Some("/nacre-test-populated/a"), "populated").unwrap();
        cgroup.make().unwrap();
        let mut process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(cgroup.path().join("cgroup.procs"), process.id().to_string()).unwrap();
        let begun = Instant::now();
        let early = cgroup.wait_until_empty(begun + Duration::from_millis(300));
        let took = begun.elapsed();
        cgroup.kill().unwrap();
        cgroup.wait_until_empty(begun + Duration::from_secs(20)).unwrap();
        process.wait().unwrap();
        assert!(took >= Duration::from_millis(300), "{took:?}");
        let want = format!(
            "cgroup {}: a killed process in it has not exited",
            cgroup.path().display()
        );
        assert_eq!(early.unwrap_err().to_string(), want);
        cgroup.remove().unwrap();
        cgroup.wait_until_empty(begun).unwrap();
    }
}
