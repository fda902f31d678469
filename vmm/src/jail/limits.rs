//! What the VMM's process may use up. Called by [`super::enter`] before it gives up the right to raise a limit.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Error, step};

/// The file server holds one descriptor for every inode that the guest has in its cache, so this bounds what a guest
/// can hold open on the host (about 1 KiB of host kernel memory each, charged to the pod's cgroup). A guest with much
/// memory remembers every file that it has looked at, so trees of several 100,000 files must fit. The usual
/// fs.nr_open.
const OPEN_FILES: u64 = 1 << 20;

/// Fails where the process has more than one thread.
pub fn one_thread() -> Result<(), Error> {
    let threads = step(
        "counting threads in /proc/self/task",
        fs::read_dir("/proc/self/task"),
    )?
    .count();
    if threads == 1 {
        return Ok(());
    }
    Err(Error {
        step: "the jail is entered by one thread",
        reason: format!("the process has {threads}"),
    })
}

/// No core files (guest memory would be in them), bounded open files, bounded message queues.
pub fn set() -> Result<(), Error> {
    step("limit of core files", setrlimit(Resource::RLIMIT_CORE, 0, 0))?;
    step(
        "limit of message queues",
        setrlimit(Resource::RLIMIT_MSGQUEUE, 0, 0),
    )?;
    let raised = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES);
    if raised == Err(nix::Error::EPERM) {
        // Without CAP_SYS_RESOURCE, or above fs.nr_open: as far as it goes.
        let (_, hard) = step("limit of open files", getrlimit(Resource::RLIMIT_NOFILE))?;
        let within = hard.min(OPEN_FILES);
        return step(
            "limit of open files",
            setrlimit(Resource::RLIMIT_NOFILE, within, within),
        );
    }
    step("limit of open files", raised)
}

/// Keeps the allocator from shrinking a thread's arena: before it does, glibc opens /proc/sys/vm/overcommit_memory,
/// which no filter but the file server's allows. Blocks from 128 KiB on are mappings of their own and still go back.
#[allow(unsafe_code, reason = "a setting of the C library's allocator")]
pub fn keep_arenas() -> Result<(), Error> {
    // SAFETY: sets a number that the allocator reads under its own lock; no memory of ours is involved.
    let set = unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX) };
    if set == 1 {
        return Ok(());
    }
    Err(Error {
        step: "mallopt of M_TRIM_THRESHOLD",
        reason: "the allocator refuses it".to_owned(),
    })
}
