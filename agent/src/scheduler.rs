//! `process.scheduler` and `process.ioPriority` of a spec: sched_setattr(2) and ioprio_set(2), which have no
//! safe wrapper. Called by the children that become an init or an exec process; never changes another
//! process.
#![allow(unsafe_code, reason = "sched_setattr and ioprio_set have no safe wrapper")]

use std::io;

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy, Scheduler,
};

/// Of linux/ioprio.h.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
/// The bits of a priority below its class (linux/ioprio.h).
const IOPRIO_CLASS_SHIFT: u32 = 13;

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

/// Sets the calling thread's I/O priority (ioprio_set(2), IOPRIO_WHO_PROCESS).
///
/// # Errors
/// EPERM without CAP_SYS_NICE for the real-time class.
pub fn set_io_priority(wanted: &LinuxIOPriority) -> io::Result<()> {
    let class = match wanted.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let priority = class << IOPRIO_CLASS_SHIFT | wanted.priority();
    // SAFETY: the arguments are integers.
    match unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
