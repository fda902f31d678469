//! Detached mounts by the file-descriptor interface: open_tree for binds, fsopen for overlay. All are private, and
//! nosuid and nodev: the guest applies the modes of the files, the host has no use for them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use super::{Error, staged};
use crate::mount::{Extent, Mount};
use crate::sys::{self, Attributes};

/// fsconfig(2) takes strings of 255 bytes and a NUL.
const MAX_VALUE: usize = 255;

/// A bind of a host path.
#[derive(Debug)]
pub struct Bound {
    pub mount: OwnedFd,
    pub is_directory: bool,
}

fn failed(what: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Error {
    let what = what.into();
    move |errno| Error::Path {
        what,
        source: errno.into(),
    }
}

/// A detached bind of `source`.
pub fn bind(source: &Path, extent: Extent) -> Result<Bound, Error> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if extent.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let mount = open_tree(CWD, source, flags).map_err(failed(source.display().to_string()))?;
    let stat = rustix::fs::fstat(&mount).map_err(failed(source.display().to_string()))?;
    close_off(&mount, source.display(), extent)?;
    Ok(Bound {
        mount,
        is_directory: FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
    })
}

fn close_off(mount: &OwnedFd, name: impl std::fmt::Display, extent: Extent) -> Result<(), Error> {
    let read_only = if extent.read_only {
        libc::MOUNT_ATTR_RDONLY
    } else {
        0
    };
    let set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | read_only;
    sys::set_attributes(
        mount,
        Attributes {
            set,
            recursive: extent.recursive,
        },
    )
    .map_err(|source| Error::Path {
        what: format!("making {name} private"),
        source,
    })
}

/// A detached mount of what containerd hands to Create.
pub fn mount(index: usize, mount: &Mount) -> Result<OwnedFd, Error> {
    let unsupported = |reason: String| Error::Unsupported {
        index,
        kind: mount.kind.clone(),
        reason,
    };
    if !mount.target.is_empty() {
        return Err(unsupported(format!(
            "its target {:?} below the root is not supported",
            mount.target
        )));
    }
    let options = Options::parse(&mount.options).map_err(&unsupported)?;
    match mount.kind.as_str() {
        "overlay" => overlay(&options),
        "bind" | "none" | "" if options.bind => {
            if let Some((key, _)) = options.values.first() {
                return Err(unsupported(format!("option {key:?} is not supported")));
            }
            Ok(bind(Path::new(&mount.source), options.extent)?.mount)
        }
        _ => Err(unsupported(
            "only overlay and bind are supported; use the overlayfs or native snapshotter".into(),
        )),
    }
}

/// mount(8)'s words, sorted by what they are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    bind: bool,
    extent: Extent,
    /// For the file system: a key, and its value where it has one.
    values: Vec<(String, Option<String>)>,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self, String> {
        let mut options = Self::default();
        for word in words {
            match word.as_str() {
                "bind" => options.bind = true,
                "rbind" => (options.bind, options.extent.recursive) = (true, true),
                "ro" => options.extent.read_only = true,
                // What every mount of ours is, and what the host's side need not be.
                "rw" | "nosuid" | "nodev" | "private" | "rprivate" | "suid" | "dev" | "exec" => {}
                "relatime" | "noatime" | "nodiratime" | "strictatime" | "noexec" => {}
                "shared" | "rshared" | "slave" | "rslave" | "unbindable" | "runbindable" => {
                    return Err(format!("propagation {word:?} of a root is not supported"));
                }
                word => options.values.push(match word.split_once('=') {
                    Some((key, value)) => (key.into(), Some(value.into())),
                    None => (word.into(), None),
                }),
            }
        }
        Ok(options)
    }
}

fn overlay(options: &Options) -> Result<OwnedFd, Error> {
    let short = Shortened::of(&options.values);
    let values = short.as_ref().map_or(&options.values, |short| &short.values);
    let mount = match &short {
        Some(short) if !fits(values) => staged::overlay(&short.base, &words(values))?,
        Some(short) => {
            // Resolved at some point until fsconfig_create, which one depends on the kernel.
            let _back = WorkingDirectory::change(&short.base)?;
            configured(values)?
        }
        None => configured(values)?,
    };
    close_off(&mount, "overlay", options.extent)?;
    Ok(mount)
}

fn configured(values: &[(String, Option<String>)]) -> Result<OwnedFd, Error> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("overlay"))?;
    for (key, value) in values {
        match value {
            Some(value) => fsconfig_set_string(fs.as_fd(), key.as_str(), value.as_str()),
            None => fsconfig_set_flag(fs.as_fd(), key.as_str()),
        }
        .map_err(failed(format!("overlay option {}", word(key, value.as_ref()))))?;
    }
    fsconfig_create(fs.as_fd()).map_err(failed(format!("overlay of {}", words(values))))?;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(failed("overlay"))
}

/// Whether fsconfig(2) takes all of `values`.
fn fits(values: &[(String, Option<String>)]) -> bool {
    values
        .iter()
        .all(|(_, value)| value.as_ref().is_none_or(|value| value.len() <= MAX_VALUE))
}

fn word(key: &str, value: Option<&String>) -> String {
    value.map_or(key.to_owned(), |value| format!("{key}={value}"))
}

/// In mount(8)'s notation.
fn words(values: &[(String, Option<String>)]) -> String {
    values
        .iter()
        .map(|(key, value)| word(key, value.as_ref()))
        .collect::<Vec<_>>()
        .join(",")
}

/// Overlay options with paths relative to the directory that all have in common.
#[derive(Debug, PartialEq, Eq)]
struct Shortened {
    base: PathBuf,
    values: Vec<(String, Option<String>)>,
}

const PATH_KEYS: [&str; 3] = ["lowerdir", "upperdir", "workdir"];

impl Shortened {
    /// None where every value fits as it is.
    fn of(values: &[(String, Option<String>)]) -> Option<Self> {
        if fits(values) {
            return None;
        }
        let paths = |value: &str| value.split(':').map(PathBuf::from).collect::<Vec<_>>();
        let all: Vec<PathBuf> = values
            .iter()
            .filter(|(key, _)| PATH_KEYS.contains(&key.as_str()))
            .flat_map(|(_, value)| paths(value.as_deref().unwrap_or_default()))
            .collect();
        let base = all
            .first()?
            .ancestors()
            .skip(1)
            .find(|base| all.iter().all(|path| path.starts_with(base)))?;
        let relative = |value: &str| {
            let parts: Vec<&OsStr> = value
                .split(':')
                .map(|path| {
                    Path::new(path)
                        .strip_prefix(base)
                        .map_or(OsStr::new(path), Path::as_os_str)
                })
                .collect();
            parts.join(OsStr::new(":")).to_string_lossy().into_owned()
        };
        let values = values
            .iter()
            .map(|(key, value)| {
                let short = value.as_deref().map(|value| {
                    if PATH_KEYS.contains(&key.as_str()) {
                        relative(value)
                    } else {
                        value.into()
                    }
                });
                (key.clone(), short)
            })
            .collect();
        Some(Self {
            base: base.to_owned(),
            values,
        })
    }
}

/// The shim's working directory, changed until this is dropped.
#[derive(Debug)]
struct WorkingDirectory(OwnedFd);

impl WorkingDirectory {
    fn change(to: &Path) -> Result<Self, Error> {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let back =
            rustix::fs::open(".", flags, rustix::fs::Mode::empty()).map_err(failed("working directory"))?;
        rustix::process::chdir(to).map_err(failed(to.display().to_string()))?;
        Ok(Self(back))
    }
}

impl Drop for WorkingDirectory {
    fn drop(&mut self) {
        if let Err(error) = rustix::process::fchdir(&self.0) {
            crate::log::warn(format_args!("going back to the bundle: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn options_are_sorted() {
        let options = Options::parse(&strings(&["rbind", "ro", "index=off", "volatile"])).unwrap();
        assert!(options.bind && options.extent.recursive && options.extent.read_only);
        assert_eq!(
            options.values,
            [("index".into(), Some("off".into())), ("volatile".into(), None)]
        );
        assert!(
            Options::parse(&strings(&["rshared"]))
                .unwrap_err()
                .contains("rshared")
        );
    }

    #[test]
    fn what_is_not_supported_is_refused_by_type() {
        let of = |kind: &str, options: &[&str]| {
            let mount = Mount {
                kind: kind.into(),
                source: "/".into(),
                target: String::new(),
                options: strings(options),
            };
            super::mount(0, &mount).unwrap_err().to_string()
        };
        assert!(of("ext4", &["loop"]).contains("ext4"));
        assert!(of("bind", &["rbind", "uid=1"]).contains("uid"));
    }

    #[test]
    fn long_lists_of_layers_become_relative() {
        let layer =
            |n: usize| format!("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/{n}/fs");
        let lower: Vec<String> = (1..20).map(layer).collect();
        let values = vec![
            ("index".to_owned(), Some("off".to_owned())),
            ("upperdir".to_owned(), Some(layer(20))),
            ("lowerdir".to_owned(), Some(lower.join(":"))),
        ];
        let short = Shortened::of(&values).unwrap();
        assert_eq!(
            short.base,
            Path::new("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots")
        );
        assert_eq!(short.values[1].1.as_deref(), Some("20/fs"));
        assert!(short.values[2].1.as_ref().unwrap().starts_with("1/fs:2/fs:"));
        assert_eq!(short.values[0].1.as_deref(), Some("off"));
        assert_eq!(Shortened::of(&values[..2]), None);
    }

    #[test]
    fn more_layers_than_fsconfig_takes_are_mounted_all_the_same() {
        if !nix::unistd::geteuid().is_root() {
            // Not println!, which the test harness hides if a test passes.
            let _ = writeln!(std::io::stderr(), "skipped: mounting an overlay needs root");
            return;
        }
        // Not on an overlay itself, where this test may run: its upper layer could not be there.
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        for name in (0..90)
            .map(|n| n.to_string())
            .chain(["upper".into(), "work".into()])
        {
            std::fs::create_dir(path(&name)).unwrap();
        }
        std::fs::write(path("0/top"), "").unwrap();
        std::fs::write(path("89/bottom"), "").unwrap();
        let lower: Vec<String> = (0..90).map(|n| path(&n.to_string())).collect();
        let options = strings(&[
            &format!("lowerdir={}", lower.join(":")),
            &format!("upperdir={}", path("upper")),
            &format!("workdir={}", path("work")),
        ]);
        let mount = super::mount(
            0,
            &Mount {
                kind: "overlay".into(),
                source: "overlay".into(),
                target: String::new(),
                options,
            },
        );
        let mount = mount.unwrap();
        for name in ["top", "bottom"] {
            rustix::fs::statat(&mount, name, rustix::fs::AtFlags::empty()).unwrap();
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(&directory.path().display().to_string()),
            "{mounts}"
        );
    }
}
