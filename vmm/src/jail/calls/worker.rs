//! System calls of every device's worker thread: its epoll set, which exists before the thread is confined.

use super::{Call, any};

pub const CALLS: &[Call] = &[
    any(
        libc::SYS_epoll_ctl,
        "adds and removes queues and the device's descriptors",
    ),
    any(libc::SYS_epoll_wait, "waits for events"),
];
