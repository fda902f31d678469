//! A guest that makes the steps of [`crate::file_times`] on a root file system or a volume of virtio-fs, or on a disk,
//! and prints their times on the console. `nacre-bench --only files-vmm` boots it under nacre-vmm ([`run`]) and under
//! another VMM ([`run_under`]).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, mount, mount_bind};
use serde_json::{Value, json};

use super::workload::{self, Parameters, SHARED};
use super::{Build, Guest, Options, OtherVmm, Workload};
use crate::containerd::ctr::output;
use crate::file_times::{self, MARK, Times};
use crate::posix::root::INITIALISED;

/// Makes the steps.
pub const WORKLOAD: Workload = Workload {
    name: "file-times",
    run: serve,
};

/// How long all steps may take. Under emulation each request takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(300);
/// Bytes of the disk, whose file is sparse.
const DISK_BYTES: u64 = 192 << 20;
/// The directory of the steps in the guest.
const DIRECTORY: &str = "/files";

/// Where the guest's files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A container's root file system, by virtio-fs.
    Rootfs,
    /// A volume, by virtio-fs.
    Volume,
    /// An ext4 on a disk.
    Disk,
}

impl Place {
    /// All places.
    pub const ALL: [Self; 3] = [Self::Rootfs, Self::Volume, Self::Disk];

    /// The word for it in names of rows and on the kernel command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rootfs => "rootfs",
            Self::Volume => "volume",
            Self::Disk => "disk",
        }
    }

    /// The directory that a pod's shared tree has for it.
    const fn tree(self) -> Option<&'static str> {
        match self {
            Self::Rootfs => Some("c/rootfs"),
            Self::Volume => Some("c/mounts/0"),
            Self::Disk => None,
        }
    }
}

/// What a guest under another VMM has its files from.
#[derive(Debug)]
pub enum Source<'a> {
    /// A directory to share.
    Shared(&'a Path),
    /// The file of a disk.
    Disk(&'a Path),
}

/// The times in a guest of `build`'s nacre-vmm. Its files are in `storage`, a directory of the host.
///
/// # Errors
/// If the guest fails.
pub fn run(build: &Build, place: Place, storage: &Path) -> Result<Times> {
    let trees: Vec<&str> = place.tree().into_iter().collect();
    let disk = match place {
        Place::Rootfs | Place::Volume => None,
        Place::Disk => Some(make_disk(storage)?.display().to_string()),
    };
    let arguments = disk.as_ref().map_or(Vec::new(), |disk| vec!["--disk", disk]);
    let guest = build.boot(&Options {
        mounts: &trees,
        arguments: &arguments,
        ..options(&[("place", place.word())], storage)
    })?;
    times(guest)
}

/// The times in a guest of another VMM, with the same kernel and workload. `command` makes the VMM's command line; its
/// standard error must have the guest's serial port.
///
/// # Errors
/// If the guest fails.
pub fn run_under(
    build: &Build,
    place: Place,
    storage: &Path,
    command: impl FnOnce(&OtherVmm<'_>, Source<'_>) -> Result<Command>,
) -> Result<Times> {
    let parameters = [("place", place.word())];
    let options = options(&parameters, storage);
    let guest = match place.tree() {
        Some(tree) => build.boot_under(&options, |vmm| {
            fs::create_dir_all(vmm.shared.join(tree))?;
            command(vmm, Source::Shared(vmm.shared))
        }),
        None => {
            let disk = make_disk(storage)?;
            let options = Options {
                cmdline: workload::UNSHARED,
                ..options
            };
            build.boot_under(&options, |vmm| command(vmm, Source::Disk(&disk)))
        }
    };
    times(guest?)
}

fn options<'a>(parameters: &'a [(&'a str, &'a str)], storage: &'a Path) -> Options<'a> {
    Options {
        workload: WORKLOAD.name,
        parameters,
        storage: Some(storage),
        ..Options::default()
    }
}

/// A file with an empty ext4.
fn make_disk(storage: &Path) -> Result<PathBuf> {
    let image = storage.join("disk");
    File::create(&image)?.set_len(DISK_BYTES)?;
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-F"]).args(INITIALISED).arg(&image);
    output(make)?.success().context("mkfs.ext4")?;
    Ok(image)
}

/// Waits for the times of a guest, and ends it.
fn times(mut guest: Guest) -> Result<Times> {
    file_times::parse(&guest.wait_for(MARK, DEADLINE)?)
}

/// The guest's half.
fn serve(parameters: &Parameters) -> Result<Value> {
    let place: String = parameters.get("place")?;
    let place = Place::ALL.into_iter().find(|known| known.word() == place);
    let place = place.context("no such place")?;
    fs::create_dir(DIRECTORY)?;
    match place.tree() {
        // As the agent does it for a container, so that no path leads through directories that are not cached.
        Some(tree) => mount_bind(Path::new(SHARED).join(tree), DIRECTORY),
        None => mount("/dev/vda", DIRECTORY, "ext4", MountFlags::empty(), None),
    }
    .context("mounting the place")?;
    let directory = Path::new(DIRECTORY).join("work");
    fs::create_dir(&directory)?;
    let times = file_times::run(&directory, || Ok(fs::write("/proc/sys/vm/drop_caches", "3")?))?;
    workload::print(&file_times::line(&times))?;
    Ok(json!({}))
}
