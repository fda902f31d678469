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

/// Sets RLIMIT_CORE to 0 (guest memory would be in a core file), RLIMIT_MSGQUEUE to 0 and RLIMIT_NOFILE to
/// [`OPEN_FILES`], or to the hard limit if that is lower and may not be raised.
pub fn set_rlimits() -> Result<(), Error> {
    step("set RLIMIT_CORE", setrlimit(Resource::RLIMIT_CORE, 0, 0))?;
    step("set RLIMIT_MSGQUEUE", setrlimit(Resource::RLIMIT_MSGQUEUE, 0, 0))?;
    let raised = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES);
    if raised == Err(nix::Error::EPERM) {
        // CAP_SYS_RESOURCE is missing, or fs.nr_open is lower.
        let (_, hard) = step("get RLIMIT_NOFILE", getrlimit(Resource::RLIMIT_NOFILE))?;
        let limit = hard.min(OPEN_FILES);
        return step(
            "set RLIMIT_NOFILE",
            setrlimit(Resource::RLIMIT_NOFILE, limit, limit),
        );
    }
    step("set RLIMIT_NOFILE", raised)
}

/// Keeps glibc's allocator from trimming a thread's arena: before it does, it opens
/// /proc/sys/vm/overcommit_memory, which only the file server's seccomp filter allows. Blocks of 128 KiB or
/// more are separate mappings and are still returned to the kernel when they are freed.
#[allow(unsafe_code, reason = "mallopt has no safe form")]
pub fn disable_malloc_trim() -> Result<(), Error> {
    // SAFETY: sets a number that the allocator reads under its own lock; no memory of ours is involved.
    let set = unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX) };
    if set == 1 {
        return Ok(());
    }
    Err(Error {
        step: "set M_TRIM_THRESHOLD by mallopt",
        reason: "the allocator rejected the value".to_owned(),
    })
}
