//! Capabilities. The process keeps what its file server needs; every other thread drops even that. Called by
//! [`super::enter`] and [`super::Confinement::confine`]; never gives one back.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits,
};

use super::{Error, ThreadKind, step};

/// What serving files as any user of the guest needs. Not DAC_READ_SEARCH: with open_by_handle_at it opens any file
/// of a file system, from outside of the shared tree as well; DAC_OVERRIDE covers the rest of it.
const FILE_SERVER: CapabilitySet = CapabilitySet::CHOWN // chown by the guest's root
    .union(CapabilitySet::DAC_OVERRIDE) // access by the guest's root to files of others
    .union(CapabilitySet::FOWNER) // chmod, utimes and sticky directories by the guest's root
    .union(CapabilitySet::FSETID) // keeps set-id bits where the guest's kernel says so
    .union(CapabilitySet::SETUID) // creates files as the guest's user
    .union(CapabilitySet::SETGID) // and group
    .union(CapabilitySet::MKNOD) // device nodes and overlay whiteouts
    .union(CapabilitySet::SETFCAP); // security.capability of files

/// The capabilities that a thread of `kind` keeps.
fn of(kind: ThreadKind) -> CapabilitySet {
    match kind {
        ThreadKind::Vcpu | ThreadKind::Device | ThreadKind::Control => CapabilitySet::empty(),
        ThreadKind::FileServer => FILE_SERVER,
    }
}

/// Limits the process, and all threads that it will have, to what the file server needs. An execve gives nothing.
pub fn bound() -> Result<(), Error> {
    step("ambient capabilities", clear_ambient_capability_set())?;
    for capability in (0..64).map(|n| CapabilitySet::from_bits_retain(1 << n)) {
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !FILE_SERVER.contains(capability) => {
                step(
                    "bounding set (this needs CAP_SETPCAP)",
                    remove_capability_from_bounding_set(capability),
                )?;
            }
            Ok(_) => {}
            // The kernel's last capability lies before this one.
            Err(Errno::INVAL) => break,
            Err(error) => return step("bounding set", Err(error)),
        }
    }
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    step("secure bits", set_capabilities_secure_bits(bits))?;
    limit_to(FILE_SERVER)
}

/// Drops what a thread of `kind` does not need.
pub fn keep(kind: ThreadKind) -> Result<(), Error> {
    limit_to(of(kind))
}

fn limit_to(wanted: CapabilitySet) -> Result<(), Error> {
    let now = step("reading capabilities", capabilities(None))?;
    let kept = now.permitted & wanted;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    step("dropping capabilities", set_capabilities(None, sets))
}
