//! Resource limits and allocator settings of the VMM's process. Called by [`super::enter`] before it drops
//! the right to raise a limit, and by [`super::Confinement::closed`].

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Error, step};

/// RLIMIT_NOFILE, equal to the usual fs.nr_open. The file server holds one descriptor per inode in the
/// guest's cache, so this bounds what a guest can keep open on the host (about 1 KiB of host kernel memory
/// each, charged to the pod's cgroup). A guest with much memory caches every inode that it has looked at:
/// trees of several 100,000 files must fit.
const OPEN_FILES: u64 = 1 << 20;

/// Fails if the process has more than one thread: unshare and capset change only the calling thread.
pub fn require_single_thread() -> Result<(), Error> {
    let threads = step("list /proc/self/task", fs::read_dir("/proc/self/task"))?.count();
    if threads == 1 {
        return Ok(());
    }
    Err(Error {
        step: "the jail must be entered by a process with one thread",
        reason: format!("the process has {threads}"),
    })
}

/// RLIMIT_CORE, in bytes. If kernel.core_pattern names a program to pipe the core to, the kernel ignores the
/// limit unless it is 1: then it dumps nothing. A core file is never that short, so 1 prevents one, too.
/// Only a socket in kernel.core_pattern (Linux 6.16) gets a dump whatever the limit is.
const CORE_BYTES: u64 = 1;

/// Sets RLIMIT_CORE to [`CORE_BYTES`], since a core would contain data of the guest; RLIMIT_NOFILE to
/// [`OPEN_FILES`]; RLIMIT_MSGQUEUE to 0. A limit stays lower where raising it is not permitted.
pub fn set_rlimits() -> Result<(), Error> {
    set_limit("set RLIMIT_CORE", Resource::RLIMIT_CORE, CORE_BYTES)?;
    set_limit("set RLIMIT_NOFILE", Resource::RLIMIT_NOFILE, OPEN_FILES)?;
    set_limit("set RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE, 0)
}

/// Sets both limits of `resource` to `wanted`, or to the present hard limit if that is lower and the kernel
/// refuses to raise it: CAP_SYS_RESOURCE is missing, or fs.nr_open is lower.
fn set_limit(name: &'static str, resource: Resource, wanted: u64) -> Result<(), Error> {
    let set = setrlimit(resource, wanted, wanted);
    if set != Err(nix::Error::EPERM) {
        return step(name, set);
    }
    let (_, hard) = step(name, getrlimit(resource))?;
    let limit = hard.min(wanted);
    step(name, setrlimit(resource, limit, limit))
}

/// Most arenas of the allocator: one per thread of any VM but the largest; then threads share some.
const ARENAS: i32 = 64;

/// Keeps glibc's allocator from opening files, which no filter but the file server's allows. Before it trims a
/// thread's arena, it would open /proc/sys/vm/overcommit_memory; blocks of 128 KiB or more are separate mappings
/// and are still returned to the kernel when they are freed. For the first thread after the eighth that needs
/// an arena, it would count the host's CPUs in /sys, to find out how many arenas there may be; such a thread may
/// be the worker of a device that is added to the running VM.
pub fn confine_malloc() -> Result<(), Error> {
    set_malloc(
        "set M_TRIM_THRESHOLD by mallopt",
        libc::M_TRIM_THRESHOLD,
        i32::MAX,
    )?;
    set_malloc("set M_ARENA_MAX by mallopt", libc::M_ARENA_MAX, ARENAS)
}

#[allow(unsafe_code, reason = "mallopt has no safe form")]
fn set_malloc(name: &'static str, option: libc::c_int, value: libc::c_int) -> Result<(), Error> {
    // SAFETY: sets a number that the allocator reads under its own lock; no memory of ours is involved.
    let set = unsafe { libc::mallopt(option, value) };
    if set == 1 {
        return Ok(());
    }
    Err(Error {
        step: name,
        reason: "the allocator rejected the value".to_owned(),
    })
}
