//! clone3(2) with a cgroup, and what its child need not have: the child never runs outside its container's limits, and no process is moved, which would
//! wait for a grace period of the kernel's.
#![allow(unsafe_code, reason = "a fork has no safe interface")]

use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Pid;

/// `CLONE_INTO_CGROUP` of linux/sched.h, which libc has in a type too small for it.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks; `child` runs in a copy of this process in the cgroup whose directory is open as `cgroup`. What it returns, if
/// it does, is the copy's exit status.
pub fn into_cgroup(cgroup: BorrowedFd<'_>, child: impl Fn() -> i32) -> Result<Pid, Errno> {
    // SAFETY: all fields are numbers, for which 0 means "not used".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = INTO_CGROUP;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(|_| Errno::BADF)?;
    // SAFETY: the arguments are as large as is said and live through the call. Without CLONE_VM the child has a copy of
    // this memory; the agent is one thread, so no lock in it is held by a thread that the child does not have.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    match i32::try_from(result) {
        Ok(0) => std::process::exit(child()),
        Ok(pid) => Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(last_error),
        Err(_) => Err(last_error()),
    }
}

/// Closes every descriptor from 3 on but those in `kept`. Only for a forked child, which uses no other ones and never
/// runs what would close them again.
pub fn close_others(kept: &mut [RawFd]) -> Result<(), Errno> {
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.iter().chain([&RawFd::MAX]) {
        let last = fd.saturating_sub(1);
        // SAFETY: three numbers; what it closes is used no more, as the caller promises.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(last_error());
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

fn last_error() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or_default())
}
