//! All system calls of the engine that need `unsafe`, each behind a safe function: fork, clone3 into a
//! cgroup, mount_setattr, bpf. Nothing here makes a decision. The shim has one thread, always (no blocking pool,
//! no std threads), so a forked child may go on running Rust code: no lock is held by a thread that the child
//! does not have.
#![allow(
    unsafe_code,
    reason = "fork, clone3 and mount_setattr have no safe form; each is wrapped here once"
)]

mod bound_child;
pub mod bpf;
mod child_files;
mod detached;
mod file_writer;
mod tap;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::process::Child;
use std::time::{Duration, Instant};

use nacre_protocol::control::Channel;
use nix::unistd::{ForkResult, Pid, fork};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open};
use tokio::io::unix::AsyncFd;

pub use bound_child::fork_bound;
pub use child_files::in_child_with_files;
pub use detached::detached_after;
pub use file_writer::FileWriter;
pub use tap::Tap;

/// How long the work of [`in_child`] may take.
pub const CHILD_DEADLINE: Duration = Duration::from_secs(10);
/// How long a killed child is waited for; the shim's one thread does nothing else meanwhile.
const KILLED_CHILD_DEADLINE: Duration = Duration::from_secs(1);
/// Longest reason that [`in_child`] passes on, bytes. It fits into a pipe, so the child can exit before it is
/// read.
const MAX_REASON: usize = 16 * 1024;

/// Forks; the child runs `child` and exits with its result. Returns the child's pid.
///
/// # Errors
/// As fork(2).
pub fn fork_into(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the process has one thread (see above), so the child finds no lock held by a thread it does not
    // have.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => exit_now(child()),
    }
}

/// Runs `work` in a forked child and waits for the child to exit; the inner error is the reason why `work`
/// failed. For work that a process cannot undo, such as entering a mount namespace. A child that
/// has not exited after 10 s is killed.
///
/// # Errors
/// If no process or pipe can be created, or the child did not exit in time.
pub async fn in_child(work: impl FnOnce() -> Result<(), String>) -> io::Result<Result<(), String>> {
    in_child_within(CHILD_DEADLINE, work).await
}

async fn in_child_within(
    deadline: Duration,
    work: impl FnOnce() -> Result<(), String>,
) -> io::Result<Result<(), String>> {
    let (child, reader) = fork_for(work)?;
    let status = ForkedChild(watch(child)?).wait(deadline).await?;
    reason_of(status, reader)
}

/// As [`in_child`], but blocks, for `deadline` at most.
///
/// # Errors
/// As [`in_child`].
pub fn in_child_blocking(
    deadline: Duration,
    work: impl FnOnce() -> Result<(), String>,
) -> io::Result<Result<(), String>> {
    let (child, reader) = fork_for(work)?;
    if !wait_readable(&child, Instant::now() + deadline)? {
        end_child(&child);
        return Err(too_late(deadline));
    }
    reason_of(reap(&child)?, reader)
}

/// Forks a child that does `work`; returns its pidfd, and a pipe with the reason if `work` fails.
fn fork_for(work: impl FnOnce() -> Result<(), String>) -> io::Result<(OwnedFd, io::PipeReader)> {
    let (reader, mut writer) = io::pipe()?;
    let child = fork_into(move || {
        let reason = work().err().unwrap_or_default();
        let bytes = reason.as_bytes();
        // Fails only if the parent has exited, and then nobody needs the reason.
        let _ = writer.write_all(bytes.get(..MAX_REASON).unwrap_or(bytes));
        i32::from(!reason.is_empty())
    })?;
    Ok((pidfd_of(child)?, reader))
}

fn pidfd_of(child: Pid) -> io::Result<OwnedFd> {
    let child = rustix::process::Pid::from_raw(child.as_raw()).ok_or_else(|| io::Error::other("no pid"))?;
    Ok(pidfd_open(child, PidfdFlags::empty())?)
}

fn too_late(deadline: Duration) -> io::Error {
    let late = format!("the child process did not finish within {deadline:?} and was killed");
    io::Error::new(io::ErrorKind::TimedOut, late)
}

/// The result of a child of [`fork_for`] that has exited.
fn reason_of(status: WaitIdStatus, mut reader: io::PipeReader) -> io::Result<Result<(), String>> {
    if status.exit_status() == Some(0) {
        return Ok(Ok(()));
    }
    // The child has exited and the closure is dropped, so the pipe has no writer: this ends at once.
    let mut reason = Vec::new();
    reader.read_to_end(&mut reason)?;
    Ok(Err(if reason.is_empty() {
        format!("the child process failed: {status:?}")
    } else {
        String::from_utf8_lossy(&reason).into_owned()
    }))
}

/// A forked child that must not outlive the work it was made for: if that is cancelled or late, the child is
/// killed.
struct ForkedChild(AsyncFd<OwnedFd>);

impl ForkedChild {
    /// Waits until the child has exited; returns its exit status.
    async fn wait(self, deadline: Duration) -> io::Result<WaitIdStatus> {
        match tokio::time::timeout(deadline, self.0.readable()).await {
            Ok(ready) => drop(ready?),
            Err(_elapsed) => return Err(too_late(deadline)),
        }
        reap(self.0.get_ref())
    }
}

impl Drop for ForkedChild {
    fn drop(&mut self) {
        end_child(self.0.get_ref());
    }
}

/// Kills the child behind `pidfd` and reaps it, unless it was reaped already. A child in an uninterruptible
/// system call exits when that returns, if ever: it is waited for 1 s at most.
pub fn end_child(pidfd: impl AsFd) {
    if rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).is_err() {
        return;
    }
    let deadline = Instant::now() + KILLED_CHILD_DEADLINE;
    if matches!(wait_readable(&pidfd, deadline), Ok(true)) {
        let _ = reap(&pidfd);
    }
}

/// Takes the exit status of the child behind `pidfd`, which must have exited (its pidfd is readable):
/// otherwise this blocks.
///
/// # Errors
/// As waitid(2).
pub fn reap(pidfd: impl AsFd) -> io::Result<WaitIdStatus> {
    rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?
        .ok_or_else(|| io::Error::other("waitid returned no status"))
}

/// Registers `fd` with the runtime's epoll instance.
///
/// # Errors
/// If epoll does not support the file (a regular file or directory).
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open, as the same descriptor, as long as it lives; AsyncFd owns it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// A descriptor that becomes readable when `child` has exited.
///
/// # Errors
/// As pidfd_open(2), so also if the child has been reaped.
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

/// As [`watch`], for a control socket.
///
/// # Errors
/// As [`watch`].
pub fn watch_channel(channel: Channel) -> io::Result<AsyncFd<Channel>> {
    // SAFETY: a Channel owns one descriptor and never replaces it; AsyncFd owns the Channel.
    Ok(unsafe { AsyncFd::register(channel) }?)
}

/// Closes every descriptor but the standard streams: those that this process inherited. To be called before
/// any is opened.
pub fn close_inherited() {
    // SAFETY: plain numbers. The caller has opened no descriptor yet, so nothing in this process owns one of
    // these.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// Ends a forked child without the parent's exit handlers.
fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any code and touches no memory.
    unsafe { libc::_exit(code) }
}

/// A VMM process that has been started.
#[derive(Debug)]
pub struct Spawned {
    /// Its pid on the host; in its own PID namespace it is 1.
    pub pid: Pid,
    /// Becomes readable when the process exits.
    pub pidfd: OwnedFd,
}

/// How [`spawn`] starts a VMM.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The program's path.
    pub program: &'a CStr,
    /// argv, the program's name first.
    pub arguments: &'a [CString],
    /// The directory of the cgroup that the process is created in.
    pub cgroup: BorrowedFd<'a>,
    /// Becomes descriptor [`nacre_protocol::control::CONTROL_FD`] of the process.
    pub control: BorrowedFd<'a>,
    /// Becomes its standard error.
    pub stderr: BorrowedFd<'a>,
}

/// Starts a VMM in its cgroup and in a new PID namespace. If execve fails, the child writes one line to its
/// standard error and exits with 127. It inherits descriptors 0, 1, 2 and the control socket, and no others.
///
/// # Errors
/// As clone3(2).
pub fn spawn(spawn: &Spawn<'_>) -> io::Result<Spawned> {
    let mut argv: Vec<*const libc::c_char> = spawn.arguments.iter().map(|word| word.as_ptr()).collect();
    argv.push(std::ptr::null());
    let envp: [*const libc::c_char; 1] = [std::ptr::null()];
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data; zero in every field asks for nothing.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_PIDFD | libc::CLONE_NEWPID) as u64 | CLONE_INTO_CGROUP;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = u64::try_from(spawn.cgroup.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: args is initialised and its pidfd points at a live integer; without CLONE_VM and a stack this
    // is a fork.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => become_vmm(spawn, &argv, &envp),
        pid => {
            // SAFETY: the kernel has just made this descriptor (CLONE_PIDFD), and nothing else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Spawned {
                pid: Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?),
                pidfd,
            })
        }
    }
}

/// clone3's flag does not fit into the `c_int` that libc has for clone's.
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
    // Whatever else was inherited without close-on-exec (from containerd, or from a shell) must not reach the
    // VMM. SAFETY: plain numbers; CONTROL_FD is the highest descriptor that the VMM is given.
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

/// What [`set_attributes`] changes (mount_setattr(2)).
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// Change the mounts below it, too.
    pub recursive: bool,
}

/// Shows the files of the detached mount `tree` with the ids of the user namespace `ids`; with `recursive`, also
/// those of the mounts below it.
///
/// # Errors
/// As mount_setattr(2): EINVAL if the file system does not support id-mapped mounts.
pub fn map_ids(tree: &impl AsFd, ids: &impl AsFd, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(ids.as_fd().as_raw_fd().unsigned_abs()),
    };
    mount_setattr(tree, &attr, recursive)
}

/// Changes attributes of the detached mount `tree` and makes it private, so that no mount propagates into it
/// or out of it. With `recursive`, all mounts of the tree are changed; otherwise only its root.
///
/// # Errors
/// As mount_setattr(2).
pub fn set_attributes(tree: &impl AsFd, attributes: Attributes) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    mount_setattr(tree, &attr, attributes.recursive)
}

fn mount_setattr(tree: &impl AsFd, attr: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a literal, attr is initialised and its size is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
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

    #[tokio::test]
    async fn a_child_s_reason_is_returned() {
        assert_eq!(in_child(|| Ok(())).await.unwrap(), Ok(()));
        let failed = in_child(|| Err("no such luck".into())).await.unwrap();
        assert_eq!(failed, Err("no such luck".into()));
        // More than a pipe holds: the child must exit all the same.
        let failed = in_child(|| Err("x".repeat(100_000))).await.unwrap();
        assert_eq!(failed.unwrap_err().len(), MAX_REASON);
    }

    fn hang() -> Result<(), String> {
        let (mut never, _writer) = io::pipe().unwrap();
        let _ = never.read(&mut [0]);
        Ok(())
    }

    #[tokio::test]
    async fn a_child_that_hangs_is_killed_at_the_deadline() {
        let error = in_child_within(Duration::from_millis(50), hang)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_child_whose_work_is_cancelled_is_killed_and_reaped() {
        // A pipe that only the child keeps open: it ends with the child.
        let (mut reader, writer) = io::pipe().unwrap();
        let work = in_child(move || {
            let _open = writer;
            hang()
        });
        assert!(
            tokio::time::timeout(Duration::from_millis(50), work)
                .await
                .is_err()
        );
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}
