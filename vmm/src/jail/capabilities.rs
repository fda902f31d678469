//! Capabilities of the process and of each kind of thread. The process keeps what the file server needs;
//! every other thread drops these, too. Called by [`super::enter`] and [`super::Confinement::confine`]; never
//! grants a capability.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits,
};

use super::{Error, ThreadKind, step};

/// What serving files on behalf of any user of the guest needs. CAP_DAC_READ_SEARCH is left out because it
/// permits open_by_handle_at, which opens any file of a file system, also outside of the shared tree;
/// CAP_DAC_OVERRIDE covers everything else that it permits.
const FILE_SERVER: CapabilitySet = CapabilitySet::CHOWN // chown by the guest's root
    .union(CapabilitySet::DAC_OVERRIDE) // access by the guest's root to files of other users
    .union(CapabilitySet::FOWNER) // chmod, utimes and sticky directories by the guest's root
    .union(CapabilitySet::FSETID) // keeps set-user-ID and set-group-ID bits if the guest's kernel says so
    .union(CapabilitySet::SETUID) // creates files as the guest's user
    .union(CapabilitySet::SETGID) // creates files as the guest's group
    .union(CapabilitySet::MKNOD) // device nodes and overlay whiteouts
    .union(CapabilitySet::SETFCAP); // the extended attribute security.capability

/// The capabilities that a thread of `kind` keeps.
fn kept_by(kind: ThreadKind) -> CapabilitySet {
    match kind {
        ThreadKind::Vcpu | ThreadKind::Device | ThreadKind::Control => CapabilitySet::empty(),
        ThreadKind::FileServer => FILE_SERVER,
    }
}

/// Limits the process and all its future threads to the file server's capabilities: the ambient, bounding,
/// effective, permitted and inheritable sets. The secure bits keep execve from granting any to root.
pub fn limit_process() -> Result<(), Error> {
    step("clear ambient capabilities", clear_ambient_capability_set())?;
    for capability in (0..64).map(|n| CapabilitySet::from_bits_retain(1 << n)) {
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !FILE_SERVER.contains(capability) => {
                step(
                    "reduce the bounding set (this needs CAP_SETPCAP)",
                    remove_capability_from_bounding_set(capability),
                )?;
            }
            Ok(_) => {}
            // The kernel knows no capability with this number or a higher one.
            Err(Errno::INVAL) => break,
            Err(error) => return step("read the bounding set", Err(error)),
        }
    }
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    step("set secure bits", set_capabilities_secure_bits(bits))?;
    limit_to(FILE_SERVER)
}

/// Drops the capabilities of the calling thread that its `kind` does not keep.
pub fn limit_thread(kind: ThreadKind) -> Result<(), Error> {
    limit_to(kept_by(kind))
}

fn limit_to(wanted: CapabilitySet) -> Result<(), Error> {
    let current = step("read capabilities", capabilities(None))?;
    let kept = current.permitted & wanted;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    step("drop capabilities", set_capabilities(None, sets))
}
