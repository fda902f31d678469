//! What every thread needs: memory, locks, the clock, its own end, and a panic's message.

use super::{Call, any, one_of, without};

/// PROT_EXEC of mmap and mprotect.
const EXEC: u64 = libc::PROT_EXEC as u64;

pub const CALLS: &[Call] = &[
    // Memory: the allocator and thread stacks. Nothing becomes executable.
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
        "free of large blocks, of a thread's signal stack",
    ),
    any(libc::SYS_mremap, "realloc of large blocks"),
    any(
        libc::SYS_madvise,
        "free: gives pages back; a thread's end: gives its stack back",
    ),
    any(
        libc::SYS_sched_getaffinity,
        "malloc asks once how many CPUs there are, for its number of arenas",
    ),
    any(libc::SYS_getrandom, "seeds of hash maps; entropy for the guest"),
    // Threads among each other.
    any(libc::SYS_futex, "locks, channels, joining"),
    any(libc::SYS_sched_yield, "spinning of locks before they sleep"),
    any(libc::SYS_read, "event descriptors"),
    any(libc::SYS_write, "event descriptors; standard error"),
    any(libc::SYS_writev, "standard error, as panics write it"),
    any(libc::SYS_close, "dropped descriptors"),
    one_of(
        libc::SYS_fcntl,
        1,
        &[
            libc::F_GETFD as u64,
            libc::F_GETFL as u64,
            libc::F_SETFL as u64,
            libc::F_DUPFD_CLOEXEC as u64,
        ],
        "dup of a descriptor; the standard library checks in debug builds what it closes",
    ),
    // Time.
    any(
        libc::SYS_clock_gettime,
        "the clock, where the vDSO can't read it (unstable TSC, nested hosts)",
    ),
    // Signals and the end.
    any(
        libc::SYS_rt_sigreturn,
        "return from the handler that kicks a vCPU",
    ),
    any(
        libc::SYS_rt_sigprocmask,
        "a thread's end and abort() block signals",
    ),
    any(
        libc::SYS_sigaltstack,
        "a thread's end gives its signal stack back",
    ),
    any(
        libc::SYS_restart_syscall,
        "a wait with a deadline goes on after a signal or SIGCONT",
    ),
    any(libc::SYS_gettid, "abort(), and names in messages"),
    any(libc::SYS_getpid, "abort()"),
    any(libc::SYS_tgkill, "abort(), and kicking a vCPU"),
    any(libc::SYS_exit, "a thread's end"),
    any(libc::SYS_exit_group, "the process's end"),
];
