//! The main thread once the VM runs: the control socket, the console's input by hand, the end of the others.

use super::{Call, any};

pub const CALLS: &[Call] = &[
    any(
        libc::SYS_poll,
        "waits for the control socket, the VM's end, a key",
    ),
    any(libc::SYS_recvmsg, "the control socket"),
    any(libc::SYS_sendmsg, "the control socket"),
    any(libc::SYS_pread64, "KVM's statistics, for counts of exits"),
    any(libc::SYS_pwrite64, "the console's last line goes into its ring"),
];
