//! A device's worker: queues in guest memory, event descriptors, and the streams of vsock, which are Unix sockets.
//! It opens no file.

use super::{Call, any, one_of};

pub const CALLS: &[Call] = &[
    any(libc::SYS_epoll_ctl, "streams come and go"),
    any(libc::SYS_epoll_wait, "waits"),
    any(libc::SYS_epoll_pwait, "waits"),
    one_of(
        libc::SYS_socketpair,
        0,
        &[libc::AF_UNIX as u64],
        "a vsock stream to the shim: one end of a pair",
    ),
    any(libc::SYS_sendmsg, "the pair's other end goes to the shim"),
    any(libc::SYS_recvfrom, "the greeting of who connects by hand"),
    any(libc::SYS_accept4, "who connects by hand"),
    any(libc::SYS_shutdown, "half-closed streams"),
    one_of(libc::SYS_ioctl, 1, &[libc::FIONBIO], "streams don't block"),
];
