//! What the agent does as PID 1 of the guest: mounts file systems, sets kernel parameters and the host name,
//! and powers the guest off. Called by `main` and by the Setup request; never by an agent that runs
//! standalone.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nacre_protocol::guest::{CONTAINERS_CGROUP, SHARED_MOUNT, SHARED_TAG};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::cgroup;
use crate::error::Error;

/// The cgroup v2 controllers that limit containers.
const CONTROLLERS: &str = "+cpuset +cpu +io +memory +hugetlb +pids";

/// Resource limits that a container inherits if its spec sets none: those of containerd's systemd service.
/// The kernel derives its own defaults for PID 1 from the guest's small memory. None is RLIM_INFINITY.
const INHERITED_LIMITS: [(Resource, Option<u64>); 3] = [
    (Resource::Nproc, None),
    (Resource::Core, None),
    (Resource::Nofile, Some(1 << 20)),
];

/// Kernel parameters that a container would find larger on a host. The kernel derives its own from the memory
/// at boot, which is small and grows.
///
/// - vm.overcommit_memory = 1: an allocation may exceed the memory that the guest has now. By default, the
///   kernel refuses a single one that exceeds all of it.
/// - kernel.threads-max: the kernel's own maximum for pids.
const PARAMETERS: [(&str, &str); 3] = [
    ("/proc/sys/vm/overcommit_memory", "1"),
    ("/proc/sys/kernel/threads-max", "4194304"),
    ("/proc/sys/fs/file-max", "9223372036854775807"),
];

/// Changes the root from the initramfs's rootfs, on which pivot_root(2) fails with EINVAL, to a clone of that
/// mount.
pub fn replace_rootfs() -> Result<(), Error> {
    let root = open_tree(
        CWD,
        "/",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .map_err(Error::system("cloning the mount of /"))?;
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(Error::system("mounting the clone of / on /"))?;
    rustix::process::fchdir(&root).map_err(Error::system("changing to the directory of the new /"))?;
    rustix::process::chroot(".").map_err(Error::system("changing the root to the new /"))
}

/// Mounts the file systems that the agent needs. A container's file systems are mounted when it
/// is created.
pub fn mount_filesystems() -> Result<(), Error> {
    let restricted = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_at("/proc", "proc", "proc", restricted, None)?;
    mount_at(
        "/dev",
        "devtmpfs",
        "devtmpfs",
        MountFlags::NOSUID,
        Some(c"mode=0755"),
    )?;
    mount_at("/sys", "sysfs", "sysfs", restricted, None)?;
    mount_at(cgroup::ROOT, "cgroup2", "cgroup2", restricted, None)
}

/// Mounts the tree that the host shares.
pub fn mount_shared_tree() -> Result<(), Error> {
    mount_at(SHARED_MOUNT, "virtiofs", SHARED_TAG, MountFlags::empty(), None)
}

fn mount_at(
    target: &str,
    fstype: &str,
    source: &str,
    flags: MountFlags,
    data: Option<&CStr>,
) -> Result<(), Error> {
    if !Path::new(target).is_dir() {
        fs::create_dir_all(target).map_err(Error::file("creating", target))?;
    }
    mount(source, target, fstype, flags, data)
        .map_err(Error::system(format!("mounting {fstype} on {target}")))
}

/// Sets up what is needed before the first container but not before the agent answers Setup: its own OOM
/// score, the cgroup of all containers, kernel parameters, inherited resource limits, the loopback device.
pub fn prepare_for_containers() -> Result<(), Error> {
    let file = "/proc/self/oom_score_adj";
    fs::write(file, "-1000").map_err(Error::file("writing", file))?;
    let root = Path::new(cgroup::ROOT);
    let containers = root.join(CONTAINERS_CGROUP);
    enable_controllers(root)?;
    fs::create_dir(&containers).map_err(Error::file("creating", &containers))?;
    enable_controllers(&containers)?;
    for (file, value) in PARAMETERS {
        fs::write(file, value).map_err(Error::file("writing", file))?;
    }
    for (resource, limit) in INHERITED_LIMITS {
        setrlimit(
            resource,
            Rlimit {
                current: limit,
                maximum: limit,
            },
        )
        .map_err(Error::system(format!("setting resource limit {resource:?}")))?;
    }
    crate::loopback::bring_up().map_err(Error::system("bringing the loopback device up"))
}

/// Enables [`CONTROLLERS`] for the children of the cgroup in `directory`.
fn enable_controllers(directory: &Path) -> Result<(), Error> {
    let file = directory.join("cgroup.subtree_control");
    fs::write(&file, CONTROLLERS).map_err(Error::file("writing", file))
}

/// Sets the guest's host name; an empty `name` leaves it unchanged.
pub fn set_hostname(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Ok(());
    }
    rustix::system::sethostname(name.as_bytes()).map_err(Error::system("setting the host name"))
}

/// The guest kernel's release, as `uname -r` prints it.
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// CLOCK_MONOTONIC in microseconds; in a guest it starts with the guest's kernel.
pub fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::try_from(now).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// Syncs file systems and powers the guest off. Returns only if that failed.
pub fn power_off() -> io::Error {
    rustix::fs::sync();
    match rustix::system::reboot(rustix::system::RebootCommand::PowerOff) {
        Ok(()) => io::Error::other("reboot(2) returned, the guest is still running"),
        Err(error) => error.into(),
    }
}
