//! A device's table allows no call that nobody makes.

use std::collections::BTreeSet;

use super::*;
use crate::virtio::testing::recorded_calls;

/// The profile of a device, the tests that exercise the device, and the calls that it makes elsewhere only,
/// each with the place.
type Row = (&'static Profile, &'static str, &'static [(i64, &'static str)]);

/// The tests of the devices count interrupts instead of sending them. vsock makes other ioctls.
const INTERRUPT: (i64, &str) = (libc::SYS_ioctl, "the transport, to send an interrupt");

const DEVICES: [Row; 9] = [
    (&balloon::PROFILE, "virtio::balloon::tests::", &[INTERRUPT]),
    (
        &blk::PROFILE,
        "virtio::blk::tests::",
        &[
            INTERRUPT,
            (libc::SYS_io_uring_enter, "a ring, which can't be recorded"),
        ],
    ),
    (&net::PROFILE, "virtio::net::tests::", &[]),
    (
        &mem::PROFILE,
        "virtio::mem::tests::",
        &[INTERRUPT, (libc::SYS_sendmsg, "the control socket")],
    ),
    (&rng::PROFILE, "virtio::rng::tests::", &[INTERRUPT]),
    (&vsock::PROFILE, "virtio::vsock::tests::", &[]),
    (&vsock::STANDALONE, "virtio::vsock::tests::", &[]),
    (&fs::SYNC_PROFILE, "virtio::fs::tests::", &[]),
    (
        &fs::PROFILE,
        "virtio::fs::tests::",
        &[
            INTERRUPT,
            (
                libc::SYS_prctl,
                "libcap-ng, if it can't read /proc; so only in the jail",
            ),
        ],
    ),
];

/// Calls of which the C library makes one or the other, depending on its version: fopen before glibc 2.39 and
/// since.
const EITHER: [i64; 2] = [libc::SYS_newfstatat, libc::SYS_fstat];

fn is_made(number: i64, recorded: &BTreeSet<i64>) -> bool {
    if EITHER.contains(&number) {
        EITHER.iter().any(|either| recorded.contains(either))
    } else {
        recorded.contains(&number)
    }
}

#[test]
fn each_call_of_a_device_is_made_by_a_test() {
    // Others can't act as the guest's users.
    if !is_root() {
        return;
    }
    for (profile, tests, elsewhere) in DEVICES {
        let recorded = recorded_calls(tests);
        // Those of all threads depend on the C library.
        for call in profile.own_calls() {
            let is_elsewhere = elsewhere.iter().any(|(number, _)| *number == call.number);
            assert!(
                is_made(call.number, &recorded) != is_elsewhere,
                "{}: system call {} ({}) is {}made in {tests}",
                profile.name,
                call.number,
                call.reason,
                if is_elsewhere { "" } else { "not " },
            );
        }
    }
}
