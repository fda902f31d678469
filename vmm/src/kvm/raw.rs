//! The few calls to KVM that Rust can't check: descriptors taken over, memory handed to the guest, the union of exit
//! reasons, the statistics' ioctl.
#![allow(
    unsafe_code,
    reason = "KVM's interface is made of raw descriptors, addresses and unions"
)]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd as _, IntoRawFd as _, OwnedFd};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// Takes over `/dev/kvm`'s descriptor.
pub(super) fn kvm(device: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is ours alone; Kvm closes it.
    unsafe { Kvm::from_raw_fd(device.into_raw_fd()) }
}

/// Gives the mapping at `host` of length `range.1` to the guest at address `range.0`.
pub(super) fn set_slot(vm: &VmFd, slot: u32, range: (u64, u64), host: u64) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: range.0,
        memory_size: range.1,
        userspace_addr: host,
    };
    // SAFETY: the region is a mapping of guest memory, which the machine keeps until the process ends; nothing in
    // it is a Rust reference, all our accesses go through vm-memory's volatile ones.
    unsafe { vm.set_user_memory_region(region) }
}

/// The suberror of an exit KVM_EXIT_INTERNAL_ERROR.
pub(super) fn internal_error(vcpu: &mut VcpuFd) -> u32 {
    let run = vcpu.get_kvm_run();
    // SAFETY: the caller has seen that exit reason, so this is the union's live field; any bits are an integer.
    unsafe { run.__bindgen_anon_1.internal.suberror }
}

/// A file with the statistics that KVM keeps of `vcpu`, where this KVM has such.
pub(super) fn statistics(vcpu: &VcpuFd) -> Option<File> {
    const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
    // SAFETY: the ioctl takes no argument and touches no memory of ours.
    let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD, 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Some(unsafe { File::from_raw_fd(fd) })
}
