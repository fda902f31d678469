//! `process.scheduler` of a spec: sched_setattr(2), which has no safe wrapper. Called by the child that
//! becomes an exec process; never changes another process.
#![allow(unsafe_code, reason = "sched_setattr has no safe wrapper")]

use std::io;

use oci_spec::runtime::{LinuxSchedulerFlag, LinuxSchedulerPolicy, Scheduler};

/// `struct sched_attr` of linux/sched/types.h, first version (SCHED_ATTR_SIZE_VER0, 48 bytes).
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Sets the calling thread's scheduling policy and its attributes.
///
/// # Errors
/// EINVAL for attributes that do not fit the policy, EPERM without CAP_SYS_NICE or in a cgroup without a
/// real-time budget.
pub fn set(wanted: &Scheduler) -> io::Result<()> {
    let attributes = attributes(wanted);
    // SAFETY: the kernel reads as many bytes as the structure's `size` field says, which is its size.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn attributes(wanted: &Scheduler) -> Attributes {
    let policy = match wanted.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flags = wanted.flags().iter().flatten().fold(0, |all, flag| {
        all | match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
        }
    });
    Attributes {
        size: u32::try_from(size_of::<Attributes>()).unwrap_or_default(),
        policy,
        flags,
        nice: wanted.nice().unwrap_or(0),
        // The check has ensured 0..=99.
        priority: wanted.priority().unwrap_or(0).unsigned_abs(),
        runtime: wanted.runtime().unwrap_or(0),
        deadline: wanted.deadline().unwrap_or(0),
        period: wanted.period().unwrap_or(0),
    }
}
