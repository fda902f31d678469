//! Detached mounts by the file-descriptor interface of mount: open_tree(2) for binds, fsopen(2) for overlay.
//! All are private, nosuid and nodev: the guest's kernel applies set-user-ID bits and device numbers, the
//! host's never needs to.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use super::options::Options;
use super::restrictions::{Mounts, Restriction};
use super::{Error, id_map, staged};
use crate::mount::{Extent, IdMap, Mount};
use crate::sys::{self, Attributes};

/// Longest string that fsconfig(2) takes, bytes, without the terminating NUL.
const MAX_VALUE: usize = 255;

/// A detached bind mount of a host path.
#[derive(Debug)]
pub struct Bound {
    pub mount: OwnedFd,
    /// True for a directory, false for any other file.
    pub is_directory: bool,
    /// What the host's mounts do not allow, by their paths below the source.
    pub restrictions: Vec<Restriction>,
}

fn failed(what: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Error {
    let what = what.into();
    move |errno| Error::Path {
        what,
        source: errno.into(),
    }
}

/// Makes a detached bind mount of `source`. Its restrictions are looked up in `seen`.
pub fn bind(source: &Path, extent: Extent, seen: Option<&Mounts>) -> Result<Bound, Error> {
    let at = || failed(source.display().to_string());
    let original = open_tree(CWD, source, OpenTreeFlags::OPEN_TREE_CLOEXEC).map_err(at())?;
    let restrictions = match seen {
        Some(seen) => seen
            .below(&original, extent.recursive)
            .map_err(|error| Error::Path {
                what: format!("the mounts of {}", source.display()),
                source: error,
            })?,
        None => Vec::new(),
    };
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if extent.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let mount = open_tree(&original, "", flags).map_err(at())?;
    let stat = rustix::fs::fstat(&mount).map_err(failed(source.display().to_string()))?;
    restrict(&mount, source.display(), extent)?;
    Ok(Bound {
        mount,
        is_directory: FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
        restrictions,
    })
}

/// Makes `mount` private, nosuid and nodev, and read-only if `extent` asks for it.
fn restrict(mount: &OwnedFd, name: impl std::fmt::Display, extent: Extent) -> Result<(), Error> {
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
            clear: 0,
            recursive: extent.recursive,
        },
    )
    .map_err(|source| Error::Path {
        what: format!("mount attributes of {name}"),
        source,
    })
}

/// Shows the files of `mount` with the ids of the user namespace `ids`.
pub fn map_ids(
    mount: &OwnedFd,
    name: impl std::fmt::Display,
    ids: &OwnedFd,
    recursive: bool,
) -> Result<(), Error> {
    sys::map_ids(mount, ids, recursive).map_err(|source| {
        let hint = if source.raw_os_error() == Some(libc::EINVAL) {
            " (does its file system support id-mapped mounts?)"
        } else {
            ""
        };
        Error::Path {
            what: format!("id-mapping the mount of {name}{hint}"),
            source,
        }
    })
}

/// Makes a detached mount from entry `index` of Create's rootfs mounts.
pub async fn mount(index: usize, mount: &Mount) -> Result<OwnedFd, Error> {
    let unsupported = |reason: String| Error::Unsupported {
        index,
        kind: mount.kind.clone(),
        reason,
    };
    if !mount.target.is_empty() {
        return Err(unsupported(format!(
            "mounting at {:?} instead of the root is not supported",
            mount.target
        )));
    }
    let options = Options::parse(&mount.options).map_err(&unsupported)?;
    match mount.kind.as_str() {
        "overlay" => overlay(&options).await,
        "bind" | "none" | "" if options.bind => {
            if let Some((key, _)) = options.values.first() {
                return Err(unsupported(format!("option {key:?} is not supported")));
            }
            let bound = bind(Path::new(&mount.source), options.extent, None)?.mount;
            if let Some(map) = &options.id_map {
                let ids = id_map::user_namespace(map).await?;
                map_ids(&bound, &mount.source, &ids, false)?;
            }
            Ok(bound)
        }
        _ => Err(unsupported(
            "expected overlay, bind, a single mount of an ext4 or erofs image, or an overlay of erofs images without \
             dm-verity and merged metadata; use the snapshotter overlayfs, native, blockfile or erofs"
                .into(),
        )),
    }
}

async fn overlay(options: &Options) -> Result<OwnedFd, Error> {
    let relative = RelativeOptions::of(&options.values);
    let values = relative
        .as_ref()
        .map_or(&options.values, |relative| &relative.values);
    if let Some(map) = &options.id_map {
        let base = relative.as_ref().map(|relative| relative.base.as_path());
        let mount = mapped_overlay(base, values, map).await?;
        restrict(&mount, "overlay", options.extent)?;
        return Ok(mount);
    }
    let mount = match &relative {
        Some(relative) if !all_fit(values) => {
            staged::overlay(&relative.base, &option_string(values), None).await?
        }
        Some(relative) => {
            // The kernel resolves the paths in fsconfig(2), some versions only when the superblock is
            // created.
            let _restored_on_drop = WorkingDirectory::change(&relative.base)?;
            configure_overlay(values)?
        }
        None => configure_overlay(values)?,
    };
    restrict(&mount, "overlay", options.extent)?;
    Ok(mount)
}

/// An overlay whose lower layers are id-mapped. The upper one has the container's ids already, and overlayfs
/// itself cannot be id-mapped. Paths are absolute if `base` is None.
async fn mapped_overlay(
    base: Option<&Path>,
    values: &[(String, Option<String>)],
    map: &IdMap,
) -> Result<OwnedFd, Error> {
    let lower = values.iter().find(|(key, _)| key == "lowerdir");
    let lower = lower.and_then(|(_, value)| value.as_deref()).unwrap_or_default();
    let layers: Vec<PathBuf> = lower.split(':').map(PathBuf::from).collect();
    let parent = layers.first().and_then(|layer| layer.parent());
    let base = base.or(parent).unwrap_or(Path::new("/"));
    let ids = id_map::user_namespace(map).await?;
    let mapped = staged::Mapped {
        layers: &layers,
        ids: &ids,
    };
    staged::overlay(base, &option_string(values), Some(mapped)).await
}

fn configure_overlay(values: &[(String, Option<String>)]) -> Result<OwnedFd, Error> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("overlay"))?;
    for (key, value) in values {
        match value {
            Some(value) => fsconfig_set_string(fs.as_fd(), key.as_str(), value.as_str()),
            None => fsconfig_set_flag(fs.as_fd(), key.as_str()),
        }
        .map_err(failed(format!("overlay option {}", option(key, value.as_ref()))))?;
    }
    fsconfig_create(fs.as_fd()).map_err(failed(format!("overlay of {}", option_string(values))))?;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(failed("overlay"))
}

/// True if fsconfig(2) takes each of `values`.
fn all_fit(values: &[(String, Option<String>)]) -> bool {
    values
        .iter()
        .all(|(_, value)| value.as_ref().is_none_or(|value| value.len() <= MAX_VALUE))
}

fn option(key: &str, value: Option<&String>) -> String {
    value.map_or(key.to_owned(), |value| format!("{key}={value}"))
}

/// `values` in mount(8)'s notation.
fn option_string(values: &[(String, Option<String>)]) -> String {
    values
        .iter()
        .map(|(key, value)| option(key, value.as_ref()))
        .collect::<Vec<_>>()
        .join(",")
}

/// Overlay options whose paths are relative to the longest directory that contains all of them.
#[derive(Debug, PartialEq, Eq)]
struct RelativeOptions {
    base: PathBuf,
    values: Vec<(String, Option<String>)>,
}

const PATH_KEYS: [&str; 3] = ["lowerdir", "upperdir", "workdir"];

impl RelativeOptions {
    /// None if each value fits unchanged, or the paths have no directory in common.
    fn of(values: &[(String, Option<String>)]) -> Option<Self> {
        if all_fit(values) {
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

/// Restores the shim's working directory when dropped.
#[derive(Debug)]
struct WorkingDirectory(OwnedFd);

impl WorkingDirectory {
    fn change(to: &Path) -> Result<Self, Error> {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let original =
            rustix::fs::open(".", flags, rustix::fs::Mode::empty()).map_err(failed("working directory"))?;
        rustix::process::chdir(to).map_err(failed(to.display().to_string()))?;
        Ok(Self(original))
    }
}

impl Drop for WorkingDirectory {
    fn drop(&mut self) {
        if let Err(error) = rustix::process::fchdir(&self.0) {
            crate::log::warn(format_args!("restoring the working directory: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn strings(options: &[&str]) -> Vec<String> {
        options.iter().map(|option| (*option).to_owned()).collect()
    }

    #[tokio::test]
    async fn unsupported_types_and_options_are_refused_by_name() {
        for (kind, options, named) in [
            ("ext4", ["loop", "ro"], "ext4"),
            ("bind", ["rbind", "uid=1"], "uid"),
        ] {
            let mount = Mount {
                kind: kind.into(),
                source: "/".into(),
                target: String::new(),
                options: strings(&options),
            };
            let error = super::mount(0, &mount).await.unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
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
        let short = RelativeOptions::of(&values).unwrap();
        assert_eq!(
            short.base,
            Path::new("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots")
        );
        assert_eq!(short.values[1].1.as_deref(), Some("20/fs"));
        assert!(short.values[2].1.as_ref().unwrap().starts_with("1/fs:2/fs:"));
        assert_eq!(short.values[0].1.as_deref(), Some("off"));
        assert_eq!(RelativeOptions::of(&values[..2]), None);
    }

    #[tokio::test]
    async fn more_layers_than_fsconfig_takes_are_mounted_by_mount() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        // Not in /tmp, which may be on an overlay: an upper layer can't be on another overlay.
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
        let overlay = Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options,
        };
        let mount = super::mount(0, &overlay).await.unwrap();
        for name in ["top", "bottom"] {
            rustix::fs::statat(&mount, name, rustix::fs::AtFlags::empty()).unwrap();
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(&directory.path().display().to_string()),
            "{mounts}"
        );
    }
    /// The owner of `file` in a detached mount; None if the file system there has no id maps.
    fn owner(mount: &Result<OwnedFd, Error>, file: &str) -> Option<u32> {
        match mount {
            Ok(mount) => {
                let stat = rustix::fs::statat(mount, file, rustix::fs::AtFlags::empty());
                Some(stat.unwrap().st_uid)
            }
            Err(error) => {
                println!("skipped: {error}");
                assert!(error.to_string().contains("Invalid argument"), "{error}");
                None
            }
        }
    }

    #[tokio::test]
    async fn an_image_for_a_user_namespace_is_id_mapped() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        // tmpfs has id maps since Linux 6.3.
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        for name in ["a", "b", "upper", "work"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        for name in ["a/first", "b/second"] {
            std::fs::write(path(name), "").unwrap();
        }
        let maps = ["uidmap=0:1000:10", "gidmap=0:2000:10"];
        let mount = |kind: &str, source: String, options: &[&str]| Mount {
            kind: kind.into(),
            source,
            target: String::new(),
            options: strings(&[&maps[..], options].concat()),
        };
        let bind = super::mount(0, &mount("bind", path("a"), &["rbind", "ro"])).await;
        assert_eq!(owner(&bind, "first").unwrap_or(1000), 1000);
        let layers = format!("lowerdir={}:{}", path("a"), path("b"));
        let (upper, work) = (
            format!("upperdir={}", path("upper")),
            format!("workdir={}", path("work")),
        );
        let overlay = super::mount(0, &mount("overlay", "overlay".into(), &[&layers, &upper, &work])).await;
        for file in ["first", "second"] {
            assert_eq!(owner(&overlay, file).unwrap_or(1000), 1000);
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(&directory.path().display().to_string()),
            "{mounts}"
        );
    }
}
