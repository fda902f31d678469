//! The KVM requests whose safety Rust can't check: taking over descriptors, mapping host memory into the
//! guest, reading the union in `kvm_run`, an ioctl that kvm-ioctls does not have. Used by this module's
//! siblings and by the probe.
#![allow(
    unsafe_code,
    reason = "KVM's interface consists of raw descriptors, addresses and unions"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{kvm_run, kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{Kvm, KvmRunWrapper, VcpuFd, VmFd};

/// The part of a vCPU's area that has `kvm_run`: one page.
const KVM_RUN_BYTES: usize = 4096;
const _: () = assert!(size_of::<kvm_run>() <= KVM_RUN_BYTES);

/// Wraps the descriptor of `/dev/kvm`.
pub(crate) fn kvm(device: OwnedFd) -> Kvm {
    // SAFETY: into_raw_fd transfers ownership; Kvm closes the descriptor.
    unsafe { Kvm::from_raw_fd(device.into_raw_fd()) }
}

/// Maps the host memory at address `host` into the guest, with `flags` such as KVM_MEM_READONLY. `range` is
/// the guest-physical address and the length.
pub(crate) fn set_slot(
    vm: &VmFd,
    slot: u32,
    flags: u32,
    range: (u64, u64),
    host: u64,
) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: range.0,
        memory_size: range.1,
        userspace_addr: host,
    };
    // SAFETY: all callers pass mappings that they keep as long as the VM exists: guest memory, or pages of
    // registers. No Rust reference points into them; the VMM accesses them by vm-memory's volatile accesses.
    unsafe { vm.set_user_memory_region(region) }
}

/// Sets `vcpu`'s XSAVE area, whose size is `xsave_bytes` (KVM_CAP_XSAVE2). EINVAL if that is larger than a
/// `kvm_xsave`, as it is only in a process that has asked for AMX.
pub(crate) fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave, xsave_bytes: i32) -> Result<(), kvm_ioctls::Error> {
    if usize::try_from(xsave_bytes).map_or(true, |bytes| bytes > size_of::<kvm_xsave>()) {
        return Err(kvm_ioctls::Error::new(libc::EINVAL));
    }
    // SAFETY: KVM reads as many bytes as its XSAVE area has, which are not more than `xsave` has.
    unsafe { vcpu.set_xsave(xsave) }
}

/// `kvm_run.immediate_exit` of one vCPU, shared by its thread and whoever gives that orders. It is a second
/// mapping of the page that kvm-ioctls has mapped, which stays valid after the vCPU's thread has exited.
#[derive(Debug)]
pub(crate) struct ImmediateExit {
    flag: NonNull<AtomicU8>,
    /// Keeps the mapping.
    _page: KvmRunWrapper,
}

// SAFETY: the flag is only accessed atomically; the mapping may be unmapped by any thread.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// Maps the first page of `vcpu`'s area, which has all of `kvm_run`.
    pub(crate) fn map(vcpu: &VcpuFd) -> io::Result<Self> {
        let mut page = KvmRunWrapper::mmap_from_fd(vcpu, KVM_RUN_BYTES)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        let flag = NonNull::from(&mut page.as_mut_ref().immediate_exit).cast();
        Ok(Self { flag, _page: page })
    }

    /// Makes the next KVM_RUN of this vCPU return EINTR as soon as it has completed the guest's pending
    /// access, if there is one. One that has already entered the guest needs a signal besides.
    pub(crate) fn set(&self) {
        self.flag().store(1, Ordering::SeqCst);
    }

    /// Lets KVM_RUN enter the guest. What this thread reads afterwards is not older than a
    /// [`ImmediateExit::set`] that this overwrites; a plain store would not give that order.
    pub(crate) fn clear(&self) {
        self.flag().swap(0, Ordering::SeqCst);
    }

    fn flag(&self) -> &AtomicU8 {
        // SAFETY: the pointer is inside the mapping that `self` owns, and a byte is always aligned and valid.
        // KVM reads it; other than that, only this type's atomic accesses use this mapping.
        unsafe { self.flag.as_ref() }
    }
}

/// `kvm_run.internal.suberror`. Call it after KVM_RUN has returned KVM_EXIT_INTERNAL_ERROR.
pub(crate) fn internal_error(vcpu: &mut VcpuFd) -> u32 {
    let run = vcpu.get_kvm_run();
    // SAFETY: every member of the union is plain data of which any bits are valid; after this exit reason,
    // `internal` is the member that KVM has filled.
    unsafe { run.__bindgen_anon_1.internal.suberror }
}

/// The port access of the guest that ended KVM_RUN, as `kvm_run.io` has it: the bytes of one access, and all
/// of its data. A string instruction (`rep insb`) makes several accesses to the same port at once. Call it
/// after KVM_RUN has returned KVM_EXIT_IO.
pub(crate) fn port_data(vcpu: &mut VcpuFd) -> (usize, &mut [u8]) {
    let run: *mut kvm_run = vcpu.get_kvm_run();
    // SAFETY: the pointer comes from a reference that is valid as long as `vcpu` is borrowed. Every member of
    // the union is plain data of which any bits are valid; after this exit reason, KVM has filled `io`.
    let io = unsafe { (*run).__bindgen_anon_1.io };
    let size = usize::from(io.size);
    let offset = usize::try_from(io.data_offset).unwrap_or(0);
    // SAFETY: KVM places the data inside the area that kvm-ioctls has mapped at `run`.
    let data = unsafe { run.cast::<u8>().add(offset) };
    // SAFETY: KVM has filled `count` times `size` bytes from there on. They overlap no field of `kvm_run`, and
    // the result keeps `vcpu` borrowed, so that nobody else accesses them until the next KVM_RUN.
    let data = unsafe { std::slice::from_raw_parts_mut(data, size.saturating_mul(io.count as usize)) };
    (size, data)
}

/// The file with KVM's statistics of `vcpu` (KVM_GET_STATS_FD); None on kernels before 5.14.
pub(super) fn statistics(vcpu: &VcpuFd) -> Option<File> {
    const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
    // SAFETY: the ioctl has no argument and does not access memory of this process.
    let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD, 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the ioctl has just created this descriptor; no other code has it.
    Some(unsafe { File::from_raw_fd(fd) })
}
