//! The file systems of a container's disks: mounted before the container is created, unmounted when it is
//! deleted.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use nacre_protocol::agent::FileSystem;
use nacre_protocol::guest::disks_path;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{find, superblock};
use crate::error::Error;
use crate::slow_call::SlowCall;

/// File systems that are mounted for a container, which are unmounted when this is dropped.
#[derive(Debug, Default)]
pub struct MountedFileSystems {
    /// The directory of the mount points; None if there are none.
    directory: Option<PathBuf>,
    /// The mount points, in the order in which they were mounted.
    targets: Vec<PathBuf>,
}

impl MountedFileSystems {
    /// Mounts `file_systems` for container `id`.
    ///
    /// # Errors
    /// With the file system that can't be mounted; those before it are unmounted.
    pub async fn mount(id: &str, file_systems: &[FileSystem]) -> Result<Self, Error> {
        let mut mounted = Self::default();
        if file_systems.is_empty() {
            return Ok(mounted);
        }
        mounted.directory = Some(disks_path(id).into());
        for file_system in file_systems {
            mounted.add(file_system).await?;
        }
        Ok(mounted)
    }

    async fn add(&mut self, file_system: &FileSystem) -> Result<(), Error> {
        let FileSystem {
            type_,
            disk,
            target,
            options,
            ..
        } = file_system;
        let source = if disk.is_empty() {
            type_.as_str().into()
        } else {
            find(disk).await?.node
        };
        fs::create_dir_all(target).map_err(Error::file("creating", target))?;
        if type_ == "overlay" {
            make_layer(options)?;
        }
        let (flags, data) = parse(options);
        let text = |text: &str| {
            CString::new(text).map_err(|_| Error::BadRequest {
                what: format!("file system {type_:?}: a NUL in {text:?}"),
            })
        };
        let (point, kind, data) = (text(target)?, text(type_)?, text(&data)?);
        let source = text(&source.to_string_lossy())?;
        // Reads the disk, and may replay a journal.
        let call = || {
            if !disk.is_empty() {
                superblock::check(&source, type_)?;
            }
            Ok(mount(&*source, &*point, &*kind, flags, &*data)?)
        };
        let mounted = SlowCall::run([], call).await;
        mounted.map_err(|source| Error::System {
            what: format!("mounting the {type_} file system on {target}"),
            source: explain(source),
        })?;
        self.targets.push(target.into());
        Ok(())
    }

    /// Unmounts them, which writes what is cached of them.
    ///
    /// # Errors
    /// EBUSY if one is in use: it is then detached from the tree.
    pub async fn unmount(mut self) -> Result<(), Error> {
        while let Some(target) = self.targets.last() {
            let what = format!("unmounting {}", target.display());
            let point = CString::new(target.as_os_str().as_bytes()).unwrap_or_default();
            let unmounted = SlowCall::run([], || Ok(unmount(&*point, UnmountFlags::empty())?)).await;
            unmounted.map_err(Error::system(what))?;
            self.targets.pop();
        }
        self.remove_directory()
    }

    fn remove_directory(&mut self) -> Result<(), Error> {
        match self.directory.take() {
            Some(directory) => fs::remove_dir_all(&directory).map_err(Error::file("removing", directory)),
            None => Ok(()),
        }
    }
}

impl Drop for MountedFileSystems {
    /// For a container that could not be created, or whose file systems are in use.
    fn drop(&mut self) {
        for target in self.targets.drain(..).rev() {
            if let Err(error) = unmount(&target, UnmountFlags::DETACH) {
                crate::report::to_console(&format!("detaching {}: {error}", target.display()));
            }
        }
        if let Err(error) = self.remove_directory() {
            crate::report::to_console(&error.to_string());
        }
    }
}

/// Makes the directories of an overlay's writable layer, unless they are there.
fn make_layer(options: &[String]) -> Result<(), Error> {
    for key in ["upperdir=", "workdir="] {
        for directory in options.iter().filter_map(|option| option.strip_prefix(key)) {
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory);
            made.map_err(Error::file("creating", directory))?;
        }
    }
    Ok(())
}

/// What the errors of a disk without a valid file system mean, which the container's creator should learn.
fn explain(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EFBIG) => io::Error::other("the file system is larger than the disk: the image was cut"),
        Some(libc::EINVAL | libc::EUCLEAN) => io::Error::other(format!(
            "{error}: the disk has no valid file system of this type, or an option is not known"
        )),
        _ => error,
    }
}

/// The flags of mount(2) among `options`, and the others, separated by commas.
fn parse(options: &[String]) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "rw" | "suid" | "dev" | "exec" | "async" | "defaults" => {}
            option => data.push(option),
        }
    }
    (flags, data.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_options_are_told_apart() {
        let options = ["ro", "noatime", "rw", "data=ordered", "discard"].map(str::to_owned);
        let (flags, data) = parse(&options);
        assert_eq!(flags, MountFlags::RDONLY | MountFlags::NOATIME);
        assert_eq!(data, "data=ordered,discard");
    }

    #[tokio::test]
    async fn nothing_is_made_for_a_container_without_disks() {
        let mounted = MountedFileSystems::mount("no-disks", &[]).await.unwrap();
        assert!(mounted.directory.is_none());
        mounted.unmount().await.unwrap();
    }
}
