//! The virtual machine as KVM knows it: interrupt controllers in the kernel, memory slots, descriptors that raise
//! interrupts and catch notifications. Called by the machine's steps; the guest runs in [`vcpu`].

pub mod cpuid;
mod raw;
pub mod registers;
pub mod stats;
pub mod vcpu;

use std::os::fd::OwnedFd;

use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use vm_memory::{GuestMemory as _, GuestMemoryRegion as _};
use vmm_sys_util::eventfd::EventFd;

use crate::machine::layout;
use crate::virtio::Memory;

/// What KVM must have.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "memory slots"),
    (Cap::Irqchip, "interrupt controllers"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::ImmediateExit, "immediate exit"),
    (Cap::SetTssAddr, "TSS address"),
    (Cap::ExtCpuid, "CPUID"),
    (Cap::TscDeadlineTimer, "TSC deadline timer"),
];
const API_VERSION: i32 = 12;

/// What KVM refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An ioctl failed.
    #[error("{what}: {source}")]
    Call {
        /// Which, in words.
        what: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// Not the API that everybody has.
    #[error("KVM's API version is {0}, not {API_VERSION}")]
    Api(i32),
    /// Something is missing.
    #[error("this KVM has no {0}")]
    Missing(&'static str),
    /// CPUID can't be made.
    #[error("CPUID: {0}")]
    Cpuid(String),
}

/// Names the call that failed.
pub(crate) fn call(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |source| Error::Call { what, source }
}

/// A virtual machine, as yet without memory and vCPUs.
#[derive(Debug)]
pub struct Vm {
    kvm: Kvm,
    fd: VmFd,
}

impl Vm {
    /// Makes a VM by `/dev/kvm`'s descriptor, with its interrupt controllers.
    ///
    /// # Errors
    /// [`Error`] with what this KVM lacks or refused.
    pub fn new(device: OwnedFd) -> Result<Self, Error> {
        let kvm = raw::kvm(device);
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(Error::Api(version));
        }
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(Error::Missing(name));
        }
        let fd = create(&kvm).map_err(call("making a VM"))?;
        let tss = usize::try_from(layout::TSS).map_err(|_| Error::Missing("TSS address"))?;
        fd.set_identity_map_address(layout::IDENTITY_MAP)
            .map_err(call("setting the identity map's address"))?;
        fd.set_tss_address(tss).map_err(call("setting the TSS address"))?;
        // All of it in the kernel: a controller in user space would cost exits at each interrupt. No PIT.
        fd.create_irq_chip()
            .map_err(call("making the interrupt controllers"))?;
        Ok(Self { kvm, fd })
    }

    /// Gives `memory` to the guest. It must live as long as the VM: the machine keeps it.
    ///
    /// # Errors
    /// [`Error::Call`] where KVM refuses.
    pub fn set_memory(&self, memory: &Memory) -> Result<(), Error> {
        for (slot, region) in (0..).zip(memory.iter()) {
            let range = (region.start_addr().0, region.len());
            raw::set_slot(&self.fd, slot, range, region.as_ptr() as u64)
                .map_err(call("setting guest memory"))?;
        }
        Ok(())
    }

    /// Makes the `index`th vCPU.
    ///
    /// # Errors
    /// [`Error::Call`] where KVM refuses.
    pub fn vcpu(&self, index: u8) -> Result<kvm_ioctls::VcpuFd, Error> {
        self.fd
            .create_vcpu(u64::from(index))
            .map_err(call("making a vCPU"))
    }

    /// What CPUID this KVM supports.
    ///
    /// # Errors
    /// [`Error::Call`] where KVM refuses.
    pub fn supported_cpuid(&self) -> Result<kvm_bindings::CpuId, Error> {
        self.kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(call("asking for CPUID"))
    }

    /// A descriptor that raises interrupt line `gsi`, once a write (edge-triggered).
    ///
    /// # Errors
    /// [`Error::Call`] where KVM refuses or there is no descriptor left.
    pub fn line(&self, gsi: u8) -> Result<EventFd, Error> {
        let event = event()?;
        self.fd
            .register_irqfd(&event, u32::from(gsi))
            .map_err(call("wiring an interrupt"))?;
        Ok(event)
    }

    /// A descriptor that is written when the guest writes the 32-bit `value` to `address`, without an exit to us.
    ///
    /// # Errors
    /// [`Error::Call`] where KVM refuses or there is no descriptor left.
    pub fn doorbell(&self, address: u64, value: u32) -> Result<EventFd, Error> {
        let event = event()?;
        self.fd
            .register_ioevent(&event, &IoEventAddress::Mmio(address), value)
            .map_err(call("wiring a notification"))?;
        Ok(event)
    }

    /// From now on nothing happens when the guest writes the 32-bit `value` to `address`, and without an exit to us.
    ///
    /// # Errors
    /// [`Error::Call`] where KVM refuses or there is no descriptor left.
    pub fn swallow(&self, address: u64, value: u32) -> Result<(), Error> {
        // KVM keeps what it needs of the descriptor until the VM's end.
        self.doorbell(address, value).map(drop)
    }
}

fn event() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|error| Error::Call {
        what: "making an eventfd",
        source: kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(libc::EMFILE)),
    })
}

/// KVM answers EINTR where a signal came in between; that is no failure.
fn create(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A VM, or None, said, where there is no KVM.
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
    fn takes_memory_lines_and_doorbells() {
        let Some(vm) = vm() else { return };
        let memory = crate::machine::memory::make(4 << 20).unwrap();
        vm.set_memory(&memory).unwrap();
        for index in 0..layout::MAX_VIRTIO {
            vm.line(layout::virtio_gsi(index)).unwrap();
            vm.doorbell(layout::mmio_window(index) + 0x50, 0).unwrap();
        }
        assert!(
            vm.doorbell(layout::mmio_window(0) + 0x50, 0).is_err(),
            "the same one twice"
        );
        vm.swallow(layout::mmio_window(0) + 0x64, 1).unwrap();
        assert!(
            vm.swallow(layout::mmio_window(0) + 0x64, 1).is_err(),
            "one that is swallowed already: the wire outlives its descriptor"
        );
    }

    #[test]
    fn what_is_no_kvm_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(Vm::new(file.into()), Err(Error::Api(_))));
    }
}
