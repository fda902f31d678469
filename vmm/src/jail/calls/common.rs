//! System calls that every thread may make: memory, locks, the clock, its own exit, and the message of a
//! panic.

use super::{Call, any, one_of, without};
use crate::process::KICK_SIGNAL;

/// PROT_EXEC of mmap and mprotect.
const EXEC: u64 = libc::PROT_EXEC as u64;

pub const CALLS: &[Call] = &[
    // Memory: the allocator and thread stacks. No mapping becomes executable.
    any(libc::SYS_brk, "malloc and free of the main arena"),
    without(
        libc::SYS_mmap,
        2,
        EXEC,
        "malloc of large blocks and of new arenas",
    ),
    without(libc::SYS_mprotect, 2, EXEC, "growth of malloc's arenas"),
    any(
        libc::SYS_munmap,
        "free of large blocks; exit of a thread: its signal stack",
    ),
    any(libc::SYS_mremap, "realloc of large blocks"),
    any(
        libc::SYS_madvise,
        "free: returns pages; exit of a thread: returns its stack",
    ),
    any(
        libc::SYS_sched_getaffinity,
        "malloc reads the number of CPUs once, to limit its arenas",
    ),
    any(libc::SYS_getrandom, "seeds of hash maps; entropy for the guest"),
    // Synchronisation between threads.
    any(libc::SYS_futex, "locks, channels, join"),
    any(libc::SYS_sched_yield, "a contended lock spins before it sleeps"),
    any(libc::SYS_read, "eventfds"),
    any(libc::SYS_write, "eventfds; standard error"),
    any(libc::SYS_writev, "standard error: the message of a panic"),
    any(libc::SYS_close, "drop of a descriptor"),
    one_of(
        libc::SYS_fcntl,
        1,
        &[
            libc::F_GETFD as u64,
            libc::F_GETFL as u64,
            libc::F_SETFL as u64,
            libc::F_DUPFD_CLOEXEC as u64,
        ],
        "dup of a descriptor; debug builds of the standard library check descriptors before closing them",
    ),
    // Time.
    any(
        libc::SYS_clock_gettime,
        "the clock, if the vDSO can't read it (unstable TSC, nested hosts)",
    ),
    // Signals and exit.
    any(
        libc::SYS_rt_sigreturn,
        "return from a signal handler: a vCPU's thread was made to leave the guest",
    ),
    any(
        libc::SYS_rt_sigprocmask,
        "exit of a thread, pthread_kill() and abort() block signals",
    ),
    any(
        libc::SYS_sigaltstack,
        "exit of a thread disables its signal stack",
    ),
    any(
        libc::SYS_restart_syscall,
        "the kernel resumes a wait with a deadline after SIGSTOP and SIGCONT",
    ),
    any(
        libc::SYS_gettid,
        "abort(), and thread ids in the message of a panic",
    ),
    any(libc::SYS_getpid, "abort(), and the signal to a vCPU's thread"),
    one_of(
        libc::SYS_tgkill,
        2,
        &[libc::SIGABRT as u64, KICK_SIGNAL as u64],
        "abort(); makes a vCPU's thread leave the guest",
    ),
    any(libc::SYS_exit, "exit of a thread"),
    any(libc::SYS_exit_group, "exit of the process"),
];
