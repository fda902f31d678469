//! Errors of [`super::build`]: the step that failed, the cause, and a hint for the operator.

use std::io;

use crate::devices::generation_id;
use crate::{acpi, boot, bus, jail, kvm, snapshot, transport, virtio};

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel, the initramfs or the command line is unusable.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// Guest memory can't be allocated.
    #[error(transparent)]
    Memory(#[from] crate::memory::Error),
    /// KVM refused a request.
    #[error("KVM: {0}")]
    Kvm(#[from] kvm::Error),
    /// The ACPI tables do not fit.
    #[error(transparent)]
    Acpi(#[from] acpi::Error),
    /// Two devices have the same addresses.
    #[error(transparent)]
    Bus(#[from] bus::Overlap),
    /// A virtio device can't be created.
    #[error(transparent)]
    Device(#[from] virtio::DeviceError),
    /// This number of virtio devices exceeds the number of slots of the PCI bus.
    #[error("{0} virtio devices, but only {max} PCI slots", max = crate::devices::pci::MAX_SLOTS)]
    TooManyDevices(usize),
    /// No device was attached to this slot while the VM runs.
    #[error("no device was attached to PCI slot {0}")]
    NoSuchDevice(u8),
    /// The devices that every VM has can be added once.
    #[error("the VM has the devices that every VM has already")]
    HasCommonDevices,
    /// The guest uses the memory of this slot's device.
    #[error("the device in PCI slot {0} plugs memory, which the guest may use: it can't be removed")]
    Permanent(u8),
    /// The pages of the devices' registers can't be allocated.
    #[error("mapping pages for registers: {0}")]
    RegisterPages(#[from] vm_memory::mmap::MmapRegionError),
    /// The eventfd for the end of the VM can't be created.
    #[error("eventfd: {0}")]
    EventFd(#[from] io::Error),
    /// A vCPU's thread can't be created, or exited early.
    #[error("thread: {0}")]
    Thread(io::Error),
    /// The snapshot was made on a host that differs.
    #[error("the snapshot was made on another host: it differs in {0}")]
    OtherHost(#[from] snapshot::host::Difference),
    /// The snapshot lacks the state of a vCPU.
    #[error("the snapshot has no vCPU {0}")]
    MissingVcpu(u8),
    /// The snapshot has a device in another state than this one can have.
    #[error("the snapshot has another {0}")]
    OtherDevice(&'static str),
    /// The snapshot has other virtio devices.
    #[error("the snapshot has the devices {saved:?}, the VM {found:?}")]
    OtherDevices {
        /// Slots and names.
        saved: Vec<(u8, String)>,
        /// As above.
        found: Vec<(u8, String)>,
    },
    /// A virtio device does not take its state.
    #[error(transparent)]
    Transport(#[from] transport::pci::saved::Error),
    /// A thread can't be confined.
    #[error(transparent)]
    Jail(#[from] jail::Error),
    /// The VM generation id can't be written.
    #[error(transparent)]
    GenerationId(#[from] generation_id::Error),
}

/// A step of [`super::build`] that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {error}")]
pub struct Failure {
    /// Name of the step, such as "load guest images".
    pub step: &'static str,
    /// The cause.
    #[source]
    pub error: Error,
}

impl Failure {
    /// For `map_err`: turns an error into a failure of `step`.
    pub fn at<E: Into<Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self {
            step,
            error: error.into(),
        }
    }

    /// What the operator can do about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match &self.error {
            Error::Boot(boot::Error::TooLittleMemory { minimum_mib, .. }) => {
                Some(format!("set memory_mib to at least {minimum_mib} in config.toml, or remove it"))
            }
            Error::Boot(boot::Error::Kernel(_)) => Some(
                "point `kernel` in config.toml to the vmlinux that Nacre's build makes (share/nacre/vmlinux)".to_owned(),
            ),
            Error::Boot(boot::Error::Initrd(_)) => Some(
                "point `initrd` in config.toml to the image that Nacre's build makes (share/nacre/initramfs.cpio)"
                    .to_owned(),
            ),
            Error::Boot(boot::Error::CommandLine(_)) => Some("shorten kernel_params in config.toml".to_owned()),
            Error::Kvm(_) => Some("run `nacre doctor` to check whether this host's KVM runs a guest".to_owned()),
            Error::Memory(_) => Some("the host is short of memory or address space".to_owned()),
            Error::Boot(boot::Error::ZeroPage(_) | boot::Error::Seed(_))
            | Error::Acpi(_)
            | Error::Bus(_)
            | Error::Device(_)
            | Error::TooManyDevices(_)
            | Error::NoSuchDevice(_)
            | Error::HasCommonDevices
            | Error::Permanent(_)
            | Error::RegisterPages(_)
            | Error::EventFd(_)
            | Error::Thread(_)
            | Error::OtherHost(_)
            | Error::MissingVcpu(_)
            | Error::OtherDevice(_)
            | Error::OtherDevices { .. }
            | Error::Transport(_)
            | Error::Jail(_)
            | Error::GenerationId(_) => None,
        }
    }
}
