//! Capabilities of the process and of each thread. The process keeps what any of its threads needs; each
//! thread drops what its profile does not keep. Called by [`super::enter`] and
//! [`super::Confinement::confine`]; never grants a capability.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits,
};

use super::calls::{self, Profile};
use super::{Error, step};

/// Limits the process and all its future threads to the capabilities of all profiles together (in effect the
/// file server's): the ambient, bounding, effective, permitted and inheritable sets. The secure bits keep
/// execve from granting any to root.
pub fn limit_process() -> Result<(), Error> {
    let needed = calls::ALL
        .iter()
        .fold(CapabilitySet::empty(), |all, profile| all | profile.capabilities);
    step("clear ambient capabilities", clear_ambient_capability_set())?;
    for capability in (0..64).map(|n| CapabilitySet::from_bits_retain(1 << n)) {
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !needed.contains(capability) => {
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
    limit_to(needed)
}

/// Drops the capabilities of the calling thread that `profile` does not keep.
pub fn limit_thread(profile: &Profile) -> Result<(), Error> {
    limit_to(profile.capabilities)
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
