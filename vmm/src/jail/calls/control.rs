//! The main thread once the VM runs: the control socket, signals by descriptor, the end of the others.

use super::{Call, any};

pub const CALLS: &[Call] = &[
    any(libc::SYS_epoll_create1, "the loop"),
    any(libc::SYS_epoll_ctl, "the loop"),
    any(libc::SYS_epoll_wait, "waits"),
    any(libc::SYS_epoll_pwait, "waits"),
    any(libc::SYS_poll, "waits for the control socket or the VM's end"),
    any(libc::SYS_ppoll, "the same, with a deadline"),
    any(libc::SYS_eventfd2, "event descriptors"),
    any(libc::SYS_timerfd_create, "deadlines"),
    any(libc::SYS_timerfd_settime, "deadlines"),
    any(libc::SYS_recvmsg, "the control socket"),
    any(libc::SYS_sendmsg, "the control socket"),
    any(libc::SYS_pwrite64, "last words on the console's ring"),
    any(libc::SYS_pread64, "KVM's statistics of the vCPUs"),
];
