//! System calls of a device's worker thread (vsock, rng): eventfds, epoll, and the streams of vsock, which
//! are Unix sockets. It opens no file.

use super::{Call, any, one_of};

pub const CALLS: &[Call] = &[
    any(libc::SYS_epoll_ctl, "adds and removes queues and streams"),
    any(libc::SYS_epoll_wait, "waits for events"),
    any(
        libc::SYS_epoll_pwait,
        "waits for events; some C libraries use this call",
    ),
    one_of(
        libc::SYS_socketpair,
        0,
        &[libc::AF_UNIX as u64],
        "a new vsock stream: this end of the pair stays here",
    ),
    any(libc::SYS_sendmsg, "sends the other end of the pair to the shim"),
    any(
        libc::SYS_recvfrom,
        "reads the CONNECT line of a standalone client",
    ),
    any(libc::SYS_accept4, "accepts a standalone client"),
    any(libc::SYS_shutdown, "closes one direction of a stream"),
    one_of(
        libc::SYS_ioctl,
        1,
        &[libc::FIONBIO],
        "makes a stream non-blocking",
    ),
];
