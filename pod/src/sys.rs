//! All system calls of the shim that need `unsafe`, each behind a safe function: fork, clone3 into a cgroup,
//! mount_setattr. Nothing here decides anything. The shim has one thread, always (no blocking pool, no std threads):
//! that is what makes a fork that goes on running Rust code sound.
#![allow(
    unsafe_code,
    reason = "fork, clone3 and mount_setattr have no safe form; each is wrapped here once"
)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::process::Child;
use std::time::Instant;

use nacre_protocol::control::Channel;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;

/// Forks; the child runs `child` and ends with the code that it gives. Gives the child's pid.
///
/// # Errors
/// Where there can be no further process.
pub fn fork_into(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the process has one thread (see above), so the child finds no lock held by a thread it does not have.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => exit_now(child()),
    }
}

/// Runs `work` in a forked child and waits for its end; gives the reason where it failed. For work that changes what a
/// process can't change back (its namespaces), and that takes no longer than a few system calls.
///
/// # Errors
/// Where there can be no further process or pipe.
pub fn in_child(work: impl FnOnce() -> Result<(), String>) -> io::Result<Result<(), String>> {
    let (mut ours, theirs) = io::pipe()?;
    let child = fork_into(|| {
        let reason = work().err().unwrap_or_default();
        let mut theirs = theirs;
        // A parent that is gone has no use for the reason.
        let _ = theirs.write_all(reason.as_bytes());
        i32::from(!reason.is_empty())
    })?;
    // The parent's copy of the writing end went with the closure, so the end of the child is the end of the file.
    let mut reason = String::new();
    ours.read_to_string(&mut reason)?;
    let status = waitpid(child, None)?;
    if status == WaitStatus::Exited(child, 0) {
        return Ok(Ok(()));
    }
    Ok(Err(if reason.is_empty() {
        format!("the child that was to do it: {status:?}")
    } else {
        reason
    }))
}

/// A descriptor to wait on, in the runtime's poll.
///
/// # Errors
/// Where epoll does not take it (plain files).
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and the same descriptor, for as long as it lives; AsyncFd owns it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Becomes readable when `child` has ended.
///
/// # Errors
/// Where it has been waited for already.
pub fn watch_end(child: &Child) -> io::Result<AsyncFd<OwnedFd>> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("no pid"))?;
    watch(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Blocks until `fd` is readable; false if it is not by `deadline`. For commands that run without a runtime.
///
/// # Errors
/// As poll(2).
pub fn wait_readable(fd: impl AsFd, deadline: Instant) -> io::Result<bool> {
    wait_for(fd, PollFlags::IN, deadline)
}

/// Blocks until `fd` has one of `events`; false if it has none by `deadline`.
///
/// # Errors
/// As poll(2).
pub fn wait_for(fd: impl AsFd, events: PollFlags, deadline: Instant) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), events)];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// When process `pid` was started, clock ticks since the host's boot: field 22 of /proc/PID/stat (proc(5)). None if there
/// is no such process.
#[must_use]
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 2, the program's name in parentheses, may contain anything; field 3 follows its last parenthesis.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// As [`watch`], for a control socket.
///
/// # Errors
/// As [`watch`].
pub fn watch_channel(channel: Channel) -> io::Result<AsyncFd<Channel>> {
    // SAFETY: a Channel owns one descriptor and never exchanges it; AsyncFd owns the Channel.
    Ok(unsafe { AsyncFd::register(channel) }?)
}

/// Ends a forked child without the parent's exit handlers.
fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any code and touches no memory.
    unsafe { libc::_exit(code) }
}

/// A VMM that has been started.
#[derive(Debug)]
pub struct Spawned {
    /// Its pid here; in its own namespace it is 1.
    pub pid: Pid,
    /// Becomes readable with its end.
    pub pidfd: OwnedFd,
}

/// What a VMM is started with.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The program's path.
    pub program: &'a CStr,
    /// Its arguments, the program's name first.
    pub arguments: &'a [CString],
    /// The directory of the cgroup that it is born into.
    pub cgroup: BorrowedFd<'a>,
    /// Becomes its descriptor [`nacre_protocol::control::CONTROL_FD`].
    pub control: BorrowedFd<'a>,
    /// Becomes its standard error.
    pub stderr: BorrowedFd<'a>,
}

/// Starts a VMM in its cgroup and its own pid namespace. A program that can't be executed ends with 127 after a line on
/// its standard error. It inherits descriptors 0, 1, 2 and the control socket, and no others.
///
/// # Errors
/// Where the kernel makes no such process.
pub fn spawn(spawn: &Spawn<'_>) -> io::Result<Spawned> {
    let mut argv: Vec<*const libc::c_char> = spawn.arguments.iter().map(|word| word.as_ptr()).collect();
    argv.push(std::ptr::null());
    let envp: [*const libc::c_char; 1] = [std::ptr::null()];
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which zero is "nothing wanted".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_PIDFD | libc::CLONE_NEWPID) as u64 | CLONE_INTO_CGROUP;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = u64::try_from(spawn.cgroup.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: args is initialised and its pidfd points at a live integer; without CLONE_VM and a stack this is a fork.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => become_vmm(spawn, &argv, &envp),
        pid => {
            // SAFETY: the kernel has just made this descriptor for us (CLONE_PIDFD).
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Spawned {
                pid: Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?),
                pidfd,
            })
        }
    }
}

/// Not in libc as u64: clone3's flags need 64 bits for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The child's side of [`spawn`]: system calls only, no allocation.
fn become_vmm(spawn: &Spawn<'_>, argv: &[*const libc::c_char], envp: &[*const libc::c_char]) -> ! {
    let control = nacre_protocol::control::CONTROL_FD;
    let first_unwanted = libc::c_uint::try_from(control + 1).unwrap_or(libc::c_uint::MAX);
    // SAFETY: plain numbers; the kernel checks them.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: as above.
    unsafe { libc::dup2(spawn.stderr.as_raw_fd(), libc::STDERR_FILENO) };
    if spawn.control.as_raw_fd() == control {
        // SAFETY: as above; dup2 onto itself would leave close-on-exec set.
        unsafe { libc::fcntl(control, libc::F_SETFD, 0) };
    } else {
        // SAFETY: as above.
        unsafe { libc::dup2(spawn.control.as_raw_fd(), control) };
    }
    // Whatever else was inherited without close-on-exec (from containerd, or from a shell) must not reach the VMM.
    // SAFETY: plain numbers; CONTROL_FD is the highest descriptor that the VMM is given.
    unsafe { libc::close_range(first_unwanted, libc::c_uint::MAX, 0) };
    // SAFETY: program, argv and envp are NUL-terminated and live in the parent's copied memory.
    unsafe { libc::execve(spawn.program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    let error = io::Error::last_os_error();
    // Allocates nothing: the number alone, in a fixed buffer.
    let mut line = [0_u8; 64];
    let mut rest: &mut [u8] = &mut line;
    let _ = writeln!(
        rest,
        "exec failed: os error {}",
        error.raw_os_error().unwrap_or(0)
    );
    let left = rest.len();
    // SAFETY: the buffer is live and `line.len() - left` bytes of it are written.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len() - left) };
    exit_now(127)
}

/// What [`set_attributes`] changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// Whether mounts below it are changed, too.
    pub recursive: bool,
}

/// Sets attributes of the detached mount `tree` and makes it private, so that nothing propagates into it or out of it.
///
/// # Errors
/// As mount_setattr(2).
pub fn set_attributes(tree: &impl AsFd, attributes: Attributes) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH
        | if attributes.recursive {
            libc::AT_RECURSIVE
        } else {
            0
        };
    // SAFETY: the path is a literal, attr is initialised and its size is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A memfd of `size` bytes, close-on-exec.
///
/// # Errors
/// As memfd_create(2).
pub fn memory_file(name: &str, size: u64) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?);
    file.set_len(size)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_keeps_its_start_time() {
        let own = start_time(std::process::id()).unwrap();
        assert_eq!(start_time(std::process::id()), Some(own));
        let init = start_time(1).unwrap();
        assert!(init <= own, "{init} {own}");
        assert_eq!(start_time(u32::MAX), None);
    }

    #[test]
    fn a_child_s_reason_comes_back() {
        assert_eq!(in_child(|| Ok(())).unwrap(), Ok(()));
        assert_eq!(
            in_child(|| Err("no such luck".into())).unwrap(),
            Err("no such luck".into())
        );
    }
}
