//! The VM as a KVM object: local APICs, memory slots, interrupts and ioeventfds. Called by the machine's steps.
//! The guest itself runs in [`vcpu`].

pub mod cpuid;
pub(crate) mod raw;
pub mod registers;
pub(crate) mod segments;
pub mod stats;
pub mod vcpu;

use core::arch::x86_64::__cpuid;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_PMU_CAPABILITY, KVM_CAP_SPLIT_IRQCHIP, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY,
    KVM_PMU_CAP_DISABLE, Msrs, kvm_clock_data, kvm_enable_cap, kvm_msi,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vm_memory::{GuestMemory as _, GuestMemoryRegion as _};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Half;
use crate::layout;
use crate::memory::Memory;
use crate::msi::Message;
use crate::msi::SendMessage;
use crate::transport::pci::page::RegisterPages;

/// The capabilities that the VMM relies on, with their names in error messages.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];
/// The memory slots of registers follow those of RAM at boot.
const FIRST_REGISTER_SLOT: u32 = 64;
/// The memory slots of RAM that is added later follow those of registers. KVM before 5.12 has 509 slots.
const FIRST_ADDED_SLOT: u32 = 128;
/// Bytes of a page in KVM's log of writes.
const PAGE: u64 = 4096;
/// KVM_GET_API_VERSION of every kernel since 2.6.22.
pub(crate) const API_VERSION: i32 = 12;

/// Why KVM can't be used, or which request it refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An ioctl failed.
    #[error("{action}: {source}")]
    Ioctl {
        /// What the VMM was doing, such as "creating a vCPU".
        action: &'static str,
        /// The errno.
        source: kvm_ioctls::Error,
    },
    /// The device does not implement the stable KVM API.
    #[error("KVM API version is {0}, expected {API_VERSION}")]
    ApiVersion(i32),
    /// This KVM lacks a capability or an MSR.
    #[error("this host's KVM does not support {0}")]
    Unsupported(&'static str),
    /// KVM does not set this MSR of a vCPU to this value.
    #[error("setting the MSR {index:#x} to {data:#x}: refused")]
    Msr {
        /// The MSR.
        index: u32,
        /// The value.
        data: u64,
    },
    /// Too many CPUID entries or MSRs for one ioctl.
    #[error("too many entries for {action}: {reason}")]
    TooManyEntries {
        /// The ioctl's purpose.
        action: &'static str,
        /// The library's message.
        reason: String,
    },
}

/// For `map_err`: names the failed action.
pub(crate) fn error_at(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |source| Error::Ioctl { action, source }
}

/// A virtual machine; memory and vCPUs are added by its methods.
#[derive(Debug)]
pub struct Vm {
    kvm: Kvm,
    /// Shared with the closures of [`Vm::message_sender`].
    fd: Arc<VmFd>,
    supported_cpuid: CpuId,
}

/// See [`Vm::supported_cpuid`].
fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, Error> {
    let mut supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(error_at("reading the supported CPUID"))?;
    cpuid::complete_l1_caches(supported.as_mut_slice(), __cpuid(cpuid::AMD_L1_CACHES));
    Ok(supported)
}

impl Vm {
    /// Creates a VM with interrupt controllers. `device` is `/dev/kvm`.
    ///
    /// # Errors
    /// [`Error`] with what this KVM does not support or refused.
    pub fn new(device: OwnedFd) -> Result<Self, Error> {
        let kvm = raw::kvm(device);
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(Error::ApiVersion(version));
        }
        if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(Error::Unsupported(name));
        }
        let fd = create_vm(&kvm).map_err(error_at("creating a VM"))?;
        disable_performance_monitoring(&fd).map_err(error_at("disabling performance monitoring"))?;
        let tss = usize::try_from(layout::TSS).map_err(|_| Error::Unsupported("TSS address"))?;
        fd.set_identity_map_address(layout::IDENTITY_MAP)
            .map_err(error_at("setting the identity map's address"))?;
        fd.set_tss_address(tss)
            .map_err(error_at("setting the TSS address"))?;
        // The local APICs only; devices send messages to them. The I/O APIC is one of the VMM's devices, and
        // KVM reserves no interrupt route for it. No PIC and no PIT.
        fd.enable_cap(&kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            ..Default::default()
        })
        .map_err(error_at("creating the interrupt controllers"))?;
        Ok(Self {
            supported_cpuid: supported_cpuid(&kvm)?,
            kvm,
            fd: Arc::new(fd),
        })
    }

    /// Maps all of `memory` into the guest. The caller keeps `memory` as long as the VM exists.
    ///
    /// # Errors
    /// [`Error::Ioctl`] if KVM refuses a memory slot.
    pub fn set_memory(&self, memory: &Memory) -> Result<(), Error> {
        self.map_memory(memory, 0)
            .map_err(error_at("mapping guest memory"))
    }

    /// Makes KVM log which pages of `memory` the guest writes from now on; [`Vm::set_memory`] has mapped it.
    ///
    /// # Errors
    /// [`Error::Ioctl`] if KVM refuses the change of a memory slot.
    pub fn log_writes(&self, memory: &Memory) -> Result<(), Error> {
        self.map_memory(memory, KVM_MEM_LOG_DIRTY_PAGES)
            .map_err(error_at("logging the guest's writes"))
    }

    fn map_memory(&self, memory: &Memory, flags: u32) -> Result<(), kvm_ioctls::Error> {
        (0..).zip(memory.iter()).try_for_each(|(slot, region)| {
            let range = (region.start_addr().0, region.len());
            raw::set_slot(&self.fd, slot, flags, range, region.as_ptr() as u64)
        })
    }

    /// The pages of `memory` that the guest has written since [`Vm::log_writes`], numbered from 0 without a gap between
    /// its regions. Those that only devices have written are not among them.
    ///
    /// # Errors
    /// [`Error::Ioctl`] if KVM has no log.
    pub fn logged_writes(&self, memory: &Memory) -> Result<BTreeSet<u32>, Error> {
        let (mut written, mut first) = (BTreeSet::new(), 0_u32);
        for (slot, region) in (0..).zip(memory.iter()) {
            let bytes = usize::try_from(region.len()).unwrap_or(usize::MAX);
            let log = self.fd.get_dirty_log(slot, bytes);
            let log = log.map_err(error_at("reading the log of the guest's writes"))?;
            for (start, word) in (first..).step_by(64).zip(log) {
                written.extend(
                    (start..)
                        .zip(0..64)
                        .filter_map(|(page, bit)| (word >> bit & 1 == 1).then_some(page)),
                );
            }
            first = first.saturating_add(u32::try_from(region.len() / PAGE).unwrap_or(u32::MAX));
        }
        Ok(written)
    }

    /// Maps `range`, a guest-physical address and a length, to the host memory at address `host`, as the
    /// `index`th such mapping. Callable while the guest runs. The caller keeps the memory as long as the VM
    /// exists.
    ///
    /// # Errors
    /// [`Error::Ioctl`] if KVM refuses the memory slot, as it does when there are too many.
    pub fn add_memory(&self, index: u32, range: (u64, u64), host: u64) -> Result<(), Error> {
        let slot = FIRST_ADDED_SLOT.saturating_add(index);
        raw::set_slot(&self.fd, slot, 0, range, host).map_err(error_at("mapping more guest memory"))
    }

    /// Maps the first `bytes` of `pages` into the guest at `address`, as the `index`th such mapping. The
    /// guest reads them without an exit; its writes exit as if there were no memory.
    ///
    /// # Errors
    /// [`Error::Ioctl`] if KVM refuses the memory slot.
    pub fn map_registers(
        &self,
        index: u32,
        address: u64,
        pages: &RegisterPages,
        bytes: u64,
    ) -> Result<(), Error> {
        let slot = FIRST_REGISTER_SLOT.saturating_add(index);
        raw::set_slot(
            &self.fd,
            slot,
            KVM_MEM_READONLY,
            (address, bytes),
            pages.host_address(),
        )
        .map_err(error_at("mapping registers"))
    }

    /// Sends messages to the guest's local APICs, on the calling thread: the only system call is
    /// KVM_SIGNAL_MSI.
    #[must_use]
    pub fn message_sender(&self) -> SendMessage {
        let fd = Arc::clone(&self.fd);
        Arc::new(move |message: Message| {
            let msi = kvm_msi {
                address_lo: Half::Low.of(message.address),
                address_hi: Half::High.of(message.address),
                data: message.data,
                ..kvm_msi::default()
            };
            // A result of 0 means that the guest has blocked the interrupt.
            fd.signal_msi(msi).map(drop).map_err(io::Error::from)
        })
    }

    /// Creates the vCPU with APIC id `index`.
    ///
    /// # Errors
    /// [`Error::Ioctl`] if KVM refuses.
    pub fn create_vcpu(&self, index: u8) -> Result<kvm_ioctls::VcpuFd, Error> {
        self.fd
            .create_vcpu(u64::from(index))
            .map_err(error_at("creating a vCPU"))
    }

    /// The CPUID entries that this KVM supports, with the host's L1 caches if KVM leaves them out.
    #[must_use]
    pub fn supported_cpuid(&self) -> &CpuId {
        &self.supported_cpuid
    }

    /// The result of KVM_CHECK_EXTENSION for capability `number`; 0 if this KVM does not know it.
    #[must_use]
    pub fn capability(&self, number: u32) -> i32 {
        self.kvm.check_extension_raw(number.into())
    }

    /// The size of a vCPU's XSAVE area in bytes; 0 on kernels before 5.17, whose area is a `kvm_xsave`.
    #[must_use]
    pub fn xsave_bytes(&self) -> i32 {
        self.kvm.check_extension_int(Cap::Xsave2)
    }

    /// The MSRs of a vCPU that KVM saves and restores.
    ///
    /// # Errors
    /// [`Error::Ioctl`] if KVM refuses.
    pub fn msr_indices(&self) -> Result<Vec<u32>, Error> {
        let list = self.kvm.get_msr_index_list();
        Ok(list.map_err(error_at("listing MSRs"))?.as_slice().to_vec())
    }

    /// The MSRs that describe the processor.
    ///
    /// # Errors
    /// [`Error::Ioctl`] if KVM refuses.
    pub fn feature_msr_indices(&self) -> Result<Vec<u32>, Error> {
        let list = self.kvm.get_msr_feature_index_list();
        let list = list.map_err(error_at("listing MSRs of the processor"))?;
        Ok(list.as_slice().to_vec())
    }

    /// Reads `msrs` that describe the processor; returns how many were read.
    ///
    /// # Errors
    /// [`Error::Ioctl`] if KVM refuses.
    pub fn read_feature_msrs(&self, msrs: &mut Msrs) -> Result<usize, Error> {
        self.kvm
            .get_msrs(msrs)
            .map_err(error_at("reading MSRs of the processor"))
    }

    /// The guest's kvm-clock in ns.
    ///
    /// # Errors
    /// [`Error::Ioctl`] if KVM refuses.
    pub fn clock_ns(&self) -> Result<u64, Error> {
        let clock = self.fd.get_clock();
        Ok(clock.map_err(error_at("reading the guest's clock"))?.clock)
    }

    /// Sets the guest's kvm-clock, which goes on from there: the time for which the guest did not exist is
    /// not counted (KVM_CLOCK_REALTIME is not set).
    ///
    /// # Errors
    /// [`Error::Ioctl`] if KVM refuses.
    pub fn set_clock_ns(&self, clock: u64) -> Result<(), Error> {
        let clock = kvm_clock_data {
            clock,
            ..Default::default()
        };
        self.fd
            .set_clock(&clock)
            .map_err(error_at("setting the guest's clock"))
    }

    /// An eventfd that KVM writes when the guest writes to `address`, whatever it writes; no vCPU exits to
    /// user space.
    ///
    /// # Errors
    /// [`Error::Ioctl`] if KVM refuses, as it does for an address that is registered already, or no
    /// descriptor is left.
    pub fn ioeventfd(&self, address: u64) -> Result<EventFd, Error> {
        let event = new_eventfd()?;
        self.fd
            .register_ioevent(&event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(error_at("registering an ioeventfd"))?;
        Ok(event)
    }

    /// Undoes [`Vm::ioeventfd`]: writes to `address` exit to user space again.
    ///
    /// # Errors
    /// [`Error::Ioctl`] if `event` is not registered for `address`.
    pub fn remove_ioeventfd(&self, event: &EventFd, address: u64) -> Result<(), Error> {
        self.fd
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(error_at("removing an ioeventfd"))
    }
}

fn new_eventfd() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|error| Error::Ioctl {
        action: "creating an eventfd",
        source: kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(libc::EMFILE)),
    })
}

/// KVM_CREATE_VM fails with EINTR if a signal arrives meanwhile; then it is called again.
fn create_vm(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result,
        }
    }
}

/// Makes KVM emulate no performance counters. [`cpuid`] hides them, but without this a guest that knows their
/// MSRs could still make KVM create events of the host's perf. Does nothing on kernels before 5.18, which don't
/// have this capability. Must precede the first vCPU.
fn disable_performance_monitoring(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let supported = vm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if supported & KVM_PMU_CAP_DISABLE.cast_signed() == 0 {
        return Ok(());
    }
    vm.enable_cap(&kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A VM; None, after printing why, on a host without KVM.
    pub(crate) fn vm() -> Option<Vm> {
        match std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
        {
            Ok(device) => Some(Vm::new(device.into()).unwrap()),
            Err(error) => {
                println!("skipped: /dev/kvm: {error}");
                None
            }
        }
    }

    #[test]
    fn memory_registers_and_ioeventfds_can_be_registered() {
        let Some(vm) = vm() else { return };
        let memory = crate::memory::allocate(4 << 20).unwrap();
        vm.set_memory(&memory).unwrap();
        let more = crate::memory::allocate(4 << 20).unwrap();
        let host = more.iter().next().unwrap().as_ptr() as u64;
        vm.add_memory(0, (8 << 30, 4 << 20), host).unwrap();
        vm.add_memory(1, (9 << 30, 4 << 20), host).unwrap();
        assert!(vm.add_memory(2, (9 << 30, 4096), host).is_err(), "overlaps");
        let [bar0, bar1] = layout::pci_bars(0).map(u64::from);
        vm.ioeventfd(bar1).unwrap();
        vm.ioeventfd(bar1 + 4).unwrap();
        assert!(vm.ioeventfd(bar1).is_err(), "registered twice");
        let pages = RegisterPages::allocate(2).unwrap();
        vm.map_registers(0, bar0, &pages, 0x2000).unwrap();
        assert!(vm.map_registers(1, bar0, &pages, 0x1000).is_err(), "overlaps");
    }

    #[test]
    fn a_message_is_accepted_for_a_vcpu_that_exists_only() {
        let Some(vm) = vm() else { return };
        let send = vm.message_sender();
        let message = Message {
            address: 0xfee0_0000,
            data: 0x31,
        };
        assert!(send(message).is_err(), "there is no vCPU");
        let _vcpu = vm.create_vcpu(0).unwrap();
        send(message).unwrap();
    }

    #[test]
    fn a_device_other_than_kvm_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(Vm::new(file.into()), Err(Error::ApiVersion(_))));
    }
}
