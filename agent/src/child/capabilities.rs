//! The capabilities of a process that becomes a command. Called by the agent's children after they have
//! changed their user; never raises a capability that the process does not have.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use rustix::io;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

/// Bits of a capability set.
const BITS: u32 = u64::BITS;

/// Makes all permitted capabilities effective again, which a change of the user has cleared.
///
/// # Errors
/// The errno of capget(2) or capset(2).
pub fn restore_effective() -> io::Result<()> {
    let now = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: now.permitted,
            ..now
        },
    )
}

/// Sets the five sets to those in `wanted`; one that is missing there becomes empty.
///
/// # Errors
/// The errno of capset(2) or prctl(2). An ambient capability that is not permitted and inheritable is left
/// out, as runc does.
pub fn set(wanted: &LinuxCapabilities) -> io::Result<()> {
    let bounding = bits(wanted.bounding());
    for capability in each(!bounding.bits()) {
        match remove_capability_from_bounding_set(capability) {
            // There is no capability of this number, and none after it.
            Err(io::Errno::INVAL) => break,
            removed => removed?,
        }
    }
    set_capabilities(
        None,
        CapabilitySets {
            effective: bits(wanted.effective()),
            permitted: bits(wanted.permitted()),
            inheritable: bits(wanted.inheritable()),
        },
    )?;
    clear_ambient_capability_set()?;
    for capability in each(bits(wanted.ambient()).bits()) {
        // Ignore this error: runc leaves such a capability out, too.
        let _ = configure_capability_in_ambient_set(capability, true);
    }
    Ok(())
}

/// The single capabilities of `set`, from the lowest number.
fn each(set: u64) -> impl Iterator<Item = CapabilitySet> {
    (0..BITS)
        .map(|number| 1 << number)
        .filter(move |bit| set & bit != 0)
        .map(CapabilitySet::from_bits_retain)
}

fn bits(names: &Option<Capabilities>) -> CapabilitySet {
    let names = names.iter().flatten();
    names.fold(CapabilitySet::empty(), |all, name| all | bit(*name))
}

/// A capability as a set, in the order of linux/capability.h.
fn bit(name: Capability) -> CapabilitySet {
    match name {
        Capability::Chown => CapabilitySet::CHOWN,
        Capability::DacOverride => CapabilitySet::DAC_OVERRIDE,
        Capability::DacReadSearch => CapabilitySet::DAC_READ_SEARCH,
        Capability::Fowner => CapabilitySet::FOWNER,
        Capability::Fsetid => CapabilitySet::FSETID,
        Capability::Kill => CapabilitySet::KILL,
        Capability::Setgid => CapabilitySet::SETGID,
        Capability::Setuid => CapabilitySet::SETUID,
        Capability::Setpcap => CapabilitySet::SETPCAP,
        Capability::LinuxImmutable => CapabilitySet::LINUX_IMMUTABLE,
        Capability::NetBindService => CapabilitySet::NET_BIND_SERVICE,
        Capability::NetBroadcast => CapabilitySet::NET_BROADCAST,
        Capability::NetAdmin => CapabilitySet::NET_ADMIN,
        Capability::NetRaw => CapabilitySet::NET_RAW,
        Capability::IpcLock => CapabilitySet::IPC_LOCK,
        Capability::IpcOwner => CapabilitySet::IPC_OWNER,
        Capability::SysModule => CapabilitySet::SYS_MODULE,
        Capability::SysRawio => CapabilitySet::SYS_RAWIO,
        Capability::SysChroot => CapabilitySet::SYS_CHROOT,
        Capability::SysPtrace => CapabilitySet::SYS_PTRACE,
        Capability::SysPacct => CapabilitySet::SYS_PACCT,
        Capability::SysAdmin => CapabilitySet::SYS_ADMIN,
        Capability::SysBoot => CapabilitySet::SYS_BOOT,
        Capability::SysNice => CapabilitySet::SYS_NICE,
        Capability::SysResource => CapabilitySet::SYS_RESOURCE,
        Capability::SysTime => CapabilitySet::SYS_TIME,
        Capability::SysTtyConfig => CapabilitySet::SYS_TTY_CONFIG,
        Capability::Mknod => CapabilitySet::MKNOD,
        Capability::Lease => CapabilitySet::LEASE,
        Capability::AuditWrite => CapabilitySet::AUDIT_WRITE,
        Capability::AuditControl => CapabilitySet::AUDIT_CONTROL,
        Capability::Setfcap => CapabilitySet::SETFCAP,
        Capability::MacOverride => CapabilitySet::MAC_OVERRIDE,
        Capability::MacAdmin => CapabilitySet::MAC_ADMIN,
        Capability::Syslog => CapabilitySet::SYSLOG,
        Capability::WakeAlarm => CapabilitySet::WAKE_ALARM,
        Capability::BlockSuspend => CapabilitySet::BLOCK_SUSPEND,
        Capability::AuditRead => CapabilitySet::AUDIT_READ,
        Capability::Perfmon => CapabilitySet::PERFMON,
        Capability::Bpf => CapabilitySet::BPF,
        Capability::CheckpointRestore => CapabilitySet::CHECKPOINT_RESTORE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_the_bits_of_their_names() {
        let names = [Capability::Chown, Capability::Kill, Capability::CheckpointRestore];
        let set = bits(&Some(names.into()));
        assert_eq!(set.bits(), 1 | 1 << 5 | 1 << 40);
        assert_eq!(
            each(set.bits()).map(|one| one.bits()).collect::<Vec<_>>(),
            [1, 1 << 5, 1 << 40]
        );
        assert_eq!(bits(&None), CapabilitySet::empty());
    }
}
