//! Why a machine could not be built: which step, what failed with its causes, what to do about it.

use std::io;

use crate::{acpi, boot, bus, jail, kvm, virtio};

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kernel, initramfs or command line.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] super::memory::Error),
    /// KVM.
    #[error("KVM: {0}")]
    Kvm(#[from] kvm::Error),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] acpi::Error),
    /// Two devices at one place.
    #[error(transparent)]
    Bus(#[from] bus::Overlap),
    /// A virtio device.
    #[error(transparent)]
    Device(#[from] virtio::DeviceError),
    /// More virtio devices than interrupt lines.
    #[error("{0} virtio devices; there are {max} interrupt lines", max = super::layout::MAX_VIRTIO)]
    TooManyDevices(usize),
    /// A descriptor for the VM's end.
    #[error("eventfd: {0}")]
    Event(#[from] io::Error),
    /// A vCPU's thread.
    #[error("thread: {0}")]
    Thread(io::Error),
    /// A thread's jail.
    #[error(transparent)]
    Jail(#[from] jail::Error),
    /// The generation id.
    #[error("getrandom: {0}")]
    Entropy(io::Error),
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {error}")]
pub struct Failure {
    /// Which.
    pub step: &'static str,
    /// Why.
    #[source]
    pub error: Error,
}

impl Failure {
    /// Makes a failure of `step` out of an error.
    pub fn at<E: Into<Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self {
            step,
            error: error.into(),
        }
    }

    /// What to do about it, where that is known.
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
            Error::Kvm(_) => Some("`nacre doctor` tells whether this host's KVM runs a guest".to_owned()),
            Error::Memory(_) => Some("the host is short of memory or address space".to_owned()),
            Error::Boot(boot::Error::ZeroPage(_))
            | Error::Acpi(_)
            | Error::Bus(_)
            | Error::Device(_)
            | Error::TooManyDevices(_)
            | Error::Event(_)
            | Error::Thread(_)
            | Error::Jail(_)
            | Error::Entropy(_) => None,
        }
    }
}
