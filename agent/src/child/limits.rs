//! Resource limits (`process.rlimits`) of the agent's children: prlimit(2). Called by an exec process and by
//! a container's init for itself; by the agent for an init in a user namespace, which can't raise one.

use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process};
use rustix::io;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::Failure;

/// Sets the limits of `process` for the caller.
pub fn set_all(process: &Process) -> Result<(), Failure> {
    let mut limits = process.rlimits().iter().flatten();
    limits.try_for_each(|limit| {
        set(None, limit).map_err(|error| Failure::Step(format!("rlimit {}: {error}", limit.typ())))
    })
}

/// Sets `limit` for process `pid`; None: for the caller.
///
/// # Errors
/// The errno of prlimit(2).
pub fn set(pid: Option<Pid>, limit: &PosixRlimit) -> io::Result<()> {
    // RLIM_INFINITY has all bits.
    let finite = |value: u64| Some(value).filter(|value| *value != u64::MAX);
    let wanted = Rlimit {
        current: finite(limit.soft()),
        maximum: finite(limit.hard()),
    };
    prlimit(pid, resource(limit.typ()), wanted).map(drop)
}

fn resource(name: PosixRlimitType) -> Resource {
    match name {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}
