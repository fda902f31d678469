//! Forks of the agent, by clone3(2): into a cgroup, for a container's init and for an exec process, which
//! never run outside its container's limits (no process is moved between cgroups, which would wait for an RCU
//! grace period); into new namespaces, for inits and for that of a pod's shared pid namespace; and a plain
//! one, for a system call that may take long. And close_range(2) for the child.
#![allow(unsafe_code, reason = "clone3, close_range and signal have no safe wrapper")]

use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use nix::sched::CloneFlags;
use rustix::io::Errno;
use rustix::process::Pid;

/// `CLONE_INTO_CGROUP` of linux/sched.h. libc defines it in a type that is too small for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks. `child` runs in a copy of this process, in the cgroup whose directory is open as `cgroup`; if it
/// returns, its result is the child's exit status.
pub fn into_cgroup(cgroup: BorrowedFd<'_>, child: impl Fn() -> i32) -> Result<Pid, Errno> {
    into_cgroup_and_namespaces(cgroup, CloneFlags::empty(), child)
}

/// As [`into_cgroup`], and in new namespaces of these types.
pub fn into_cgroup_and_namespaces(
    cgroup: BorrowedFd<'_>,
    types: CloneFlags,
    child: impl Fn() -> i32,
) -> Result<Pid, Errno> {
    let cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(|_| Errno::BADF)?;
    fork(CLONE_INTO_CGROUP | bits(types), cgroup, child)
}

/// Forks. `child` runs in a copy of this process, and its result is the exit status.
pub fn plain(child: impl Fn() -> i32) -> Result<Pid, Errno> {
    fork(0, 0, child)
}

/// Forks. `child` runs in a copy of this process, in new namespaces of these types.
pub fn into_namespaces(types: CloneFlags, child: impl Fn() -> i32) -> Result<Pid, Errno> {
    fork(bits(types), 0, child)
}

fn bits(types: CloneFlags) -> u64 {
    u64::from(types.bits().unsigned_abs())
}

fn fork(flags: u64, cgroup: u64, child: impl Fn() -> i32) -> Result<Pid, Errno> {
    // SAFETY: all fields are integers, and 0 means "not used" for each.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.cgroup = cgroup;
    // SAFETY: the pointer and the size are those of `arguments`, which outlives the call. Without CLONE_VM
    // the child has a copy of this memory. The agent has one thread, so the copy has no lock that a missing
    // thread holds.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    match i32::try_from(result) {
        Ok(0) => std::process::exit(child()),
        Ok(pid) => Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(last_error),
        Err(_) => Err(last_error()),
    }
}

/// Closes every descriptor from 3 on except those in `kept`. Only for a forked child that uses no other
/// descriptor and never drops a value that owns one.
pub fn close_others(kept: &mut [RawFd]) -> Result<(), Errno> {
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.iter().chain([&RawFd::MAX]) {
        let last = fd.saturating_sub(1);
        // SAFETY: the arguments are integers; by this function's contract, nothing uses the closed
        // descriptors.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(last_error());
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// Closes every descriptor. Only for a forked child that uses none, as for [`close_others`].
pub fn close_all() -> Result<(), Errno> {
    // SAFETY: as for close_others.
    match unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

/// Has the kernel reap the children of this process, those that it inherits, too. Only for a forked child
/// that waits for none.
pub fn discard_children() {
    // SAFETY: SIG_IGN is not a function, so no code runs in a handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

fn last_error() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or_default())
}
