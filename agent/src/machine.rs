//! The guest as a machine: what pid 1 mounts, sets and ends. Called by `main` and by Setup; never by hand-run agents.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nacre_protocol::guest::{SHARED_MOUNT, SHARED_TAG};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::cgroup;
use crate::error::Error;

/// Every controller that containers are limited by.
const CONTROLLERS: &str = "+cpuset +cpu +io +memory +hugetlb +pids";

/// What a container inherits where its spec says nothing: as from containerd's service. The kernel's own defaults for
/// pid 1 follow from the guest's small memory.
const INHERITED_LIMITS: [(Resource, Option<u64>); 3] = [
    (Resource::Nproc, None),
    (Resource::Core, None),
    (Resource::Nofile, Some(1 << 20)),
];

/// Moves the process off the initramfs's own root, which pivot_root refuses to leave: onto a mount of the same tree.
pub fn take_root() -> Result<(), Error> {
    let root = open_tree(
        CWD,
        "/",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .map_err(Error::system("cloning the root mount"))?;
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(Error::system("mounting the root"))?;
    rustix::process::fchdir(&root).map_err(Error::system("entering the root"))?;
    rustix::process::chroot(".").map_err(Error::system("changing the root"))
}

/// Mounts what the agent and its helper need. A container's own file systems are its own mounts.
pub fn mount_all() -> Result<(), Error> {
    let closed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    one("proc", "proc", "/proc", closed, None)?;
    one(
        "devtmpfs",
        "devtmpfs",
        "/dev",
        MountFlags::NOSUID,
        Some(c"mode=0755"),
    )?;
    one("sysfs", "sysfs", "/sys", closed, None)?;
    one("cgroup2", "cgroup2", cgroup::ROOT, closed, None)?;
    one(SHARED_TAG, "virtiofs", SHARED_MOUNT, MountFlags::empty(), None)
}

fn one(source: &str, kind: &str, target: &str, flags: MountFlags, data: Option<&CStr>) -> Result<(), Error> {
    if !Path::new(target).is_dir() {
        fs::create_dir_all(target).map_err(Error::file("creating", target))?;
    }
    mount(source, target, kind, flags, data).map_err(Error::system(format!("mounting {kind} on {target}")))
}

/// What need not be done before the agent is of use.
pub fn settle() -> Result<(), Error> {
    let file = "/proc/self/oom_score_adj";
    fs::write(file, "-1000").map_err(Error::file("writing", file))?;
    let file = Path::new(cgroup::ROOT).join("cgroup.subtree_control");
    fs::write(&file, CONTROLLERS).map_err(Error::file("writing", file))?;
    for (resource, limit) in INHERITED_LIMITS {
        setrlimit(
            resource,
            Rlimit {
                current: limit,
                maximum: limit,
            },
        )
        .map_err(Error::system("setting a limit"))?;
    }
    crate::runtime::bring_loopback_up().map_err(Error::system("bringing the loopback device up"))
}

/// Sets the wall clock.
pub fn set_clock(since_epoch: Duration) -> Result<(), Error> {
    let time = Timespec::try_from(since_epoch).map_err(|_| Error::BadRequest {
        what: format!("{since_epoch:?} is no time"),
    })?;
    clock_settime(ClockId::Realtime, time).map_err(Error::system("setting the clock"))
}

/// Sets the host name of the guest.
pub fn set_hostname(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Ok(());
    }
    rustix::system::sethostname(name.as_bytes()).map_err(Error::system("setting the host name"))
}

/// `uname -r`.
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The monotonic clock, which a guest's kernel starts at its own start, microseconds.
pub fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::try_from(now).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// Ends the guest in good order.
pub fn power_off() -> io::Error {
    rustix::fs::sync();
    match rustix::system::reboot(rustix::system::RebootCommand::PowerOff) {
        Ok(()) => io::Error::other("the guest goes on after it was powered off"),
        Err(error) => error.into(),
    }
}
