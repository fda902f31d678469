//! A device's worker: queues in guest memory, event descriptors, and the streams of vsock, which are Unix sockets.
//! It opens no file.

use super::{Call, any, one_of};

const UNIX: &[u64] = &[libc::AF_UNIX as u64];

pub const CALLS: &[Call] = &[
    // The event loop.
    any(libc::SYS_epoll_create1, "a loop of its own for each activation"),
    any(libc::SYS_epoll_ctl, "streams come and go"),
    any(libc::SYS_epoll_wait, "waits"),
    any(libc::SYS_epoll_pwait, "waits"),
    any(libc::SYS_epoll_pwait2, "waits, with a deadline in nanoseconds"),
    any(libc::SYS_poll, "waits for one descriptor"),
    any(libc::SYS_ppoll, "waits for one descriptor, with a deadline"),
    any(libc::SYS_eventfd2, "event descriptors"),
    any(libc::SYS_timerfd_create, "deadlines of connections"),
    any(libc::SYS_timerfd_settime, "deadlines of connections"),
    // vsock streams.
    one_of(
        libc::SYS_socketpair,
        0,
        UNIX,
        "a stream to the shim: one end of a pair",
    ),
    any(libc::SYS_sendmsg, "the other end goes to the shim; stream data"),
    any(libc::SYS_recvmsg, "stream data"),
    any(libc::SYS_sendto, "stream data"),
    any(libc::SYS_recvfrom, "stream data"),
    any(libc::SYS_readv, "stream data straight into guest memory"),
    any(libc::SYS_accept4, "the Unix socket of use by hand"),
    any(libc::SYS_shutdown, "half-closed streams"),
    one_of(libc::SYS_ioctl, 1, &[libc::FIONBIO], "streams don't block"),
];
