//! The template of a configuration: whether the guest can continue from it. Called by [`super`] once the jail is
//! closed; refuses it before a device or a vCPU's thread exists, so that the same process can boot the guest.

use std::fs::File;
use std::path::Path;

use nacre_protocol::control::{DescriptorError, Descriptors, DeviceConfig, TemplateFiles};
use nacre_protocol::guest::SHARED_TAG;

use crate::config::Config;
use crate::kvm;
use crate::machine::restore::{self, Prepared};
use crate::machine::{self, Failure, Resources};
use crate::memory;
use crate::snapshot::state::{DeviceState, Size};
use crate::snapshot::{Files, Named, OpenError, Snapshot};

/// A template that was not looked at yet.
#[derive(Debug)]
pub struct Template {
    state: File,
    memory: File,
    /// The first devices of the configuration, which must be those of the snapshot: names.
    devices: Vec<&'static str>,
    has_its_tag: bool,
}

/// Where the guest continues.
#[derive(Debug)]
pub struct Continuation {
    /// The template's snapshot.
    pub snapshot: Snapshot,
    /// The VM to restore it in.
    pub prepared: Prepared,
}

/// Why the guest does not continue from the template.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A file is not usable, or not that of this guest.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The VM has another size.
    #[error("the template was made with {field} = {saved}, the VM has {found}")]
    Size {
        /// The field of the configuration.
        field: &'static str,
        /// In the template.
        saved: u32,
        /// In the configuration.
        found: u32,
    },
    /// The kernel was booted with other parameters.
    #[error("the template was made with the kernel parameters {saved:?}, the VM has {found:?}")]
    CommandLine {
        /// In the template.
        saved: String,
        /// In the configuration.
        found: String,
    },
    /// The VM does not begin with the devices of the template.
    #[error("the template has the devices {saved:?}, the VM {found:?}")]
    Devices {
        /// In the template.
        saved: Vec<String>,
        /// In the configuration.
        found: Vec<&'static str>,
    },
    /// The tag of virtio-fs is in the memory of the template's guest.
    #[error("the template has the tag {SHARED_TAG:?}, and virtio-fs of the VM another one")]
    Tag,
    /// The host differs from the one that the template was made on, or memory can't be mapped.
    #[error(transparent)]
    Host(#[from] Failure),
    /// `/dev/kvm` can't be opened twice.
    #[error("duplicating the descriptor of /dev/kvm: {0}")]
    Descriptor(std::io::Error),
}

impl Refused {
    /// Whether the host lacked memory or descriptors at this moment, so that nothing is known to be wrong with the
    /// template.
    pub fn is_transient(&self) -> bool {
        let cause = match self {
            Self::Descriptor(error) => error.raw_os_error(),
            Self::Open(OpenError::Io { reason, .. }) => reason.raw_os_error(),
            Self::Host(failure) => os_error(&failure.error),
            Self::Open(OpenError::Unsafe(_) | OpenError::Format { .. } | OpenError::Content { .. })
            | Self::Size { .. }
            | Self::CommandLine { .. }
            | Self::Devices { .. }
            | Self::Tag => None,
        };
        cause.is_some_and(|errno| [libc::ENOMEM, libc::EAGAIN, libc::EMFILE, libc::ENFILE].contains(&errno))
    }
}

/// The error of the system call that a step of [`restore::prepare`] failed by.
fn os_error(error: &machine::Error) -> Option<i32> {
    if let machine::Error::Kvm(kvm::Error::Ioctl { source, .. }) = error {
        return Some(source.errno());
    }
    if let machine::Error::Memory(
        memory::Error::Map { source, .. }
        | memory::Error::Advise { source, .. }
        | memory::Error::File(source),
    ) = error
    {
        return source.raw_os_error();
    }
    None
}

impl Template {
    /// Takes the descriptors of `files`; `devices` are those of the configuration.
    ///
    /// # Errors
    /// [`DescriptorError`] if there is no such descriptor.
    pub fn take(
        files: TemplateFiles,
        descriptors: &mut Descriptors,
        devices: &[DeviceConfig],
    ) -> Result<Self, DescriptorError> {
        let is_other =
            |device: &DeviceConfig| matches!(device, DeviceConfig::Fs { tag } if tag != SHARED_TAG);
        Ok(Self {
            state: descriptors.take("template: state", files.state)?.into(),
            memory: descriptors.take("template: memory", files.memory)?.into(),
            devices: devices.iter().map(DeviceConfig::name).collect(),
            has_its_tag: !devices.iter().any(is_other),
        })
    }

    /// Whether the guest that `config` and `resources` describe can continue from the template.
    ///
    /// # Errors
    /// [`Refused`] with the first thing that differs.
    pub fn open(self, config: &Config, resources: &Resources) -> Result<Continuation, Refused> {
        let named = |name, file| Named {
            name: Path::new(name),
            file,
        };
        let snapshot = Snapshot::of_files(Files {
            state: named("the template's state", &self.state),
            memory: named("the template's memory", &self.memory),
            kernel: named("the VM's kernel", &resources.kernel),
            initramfs: named("the VM's initramfs", &resources.initrd),
        })?;
        check_size(snapshot.machine.size, config)?;
        check_command_line(&snapshot.extra_cmdline, &config.extra_cmdline)?;
        self.check_devices(&snapshot)?;
        let kvm = resources.kvm.try_clone().map_err(Refused::Descriptor)?;
        let prepared = restore::prepare(kvm, &snapshot)?;
        Ok(Continuation { snapshot, prepared })
    }

    fn check_devices(&self, snapshot: &Snapshot) -> Result<(), Refused> {
        let saved = restore::configured_devices(&snapshot.machine);
        let in_place =
            |(slot, (saved, found)): (u8, (&DeviceState, &&str))| saved.slot == slot && saved.name == *found;
        let is_first =
            saved.len() <= self.devices.len() && (0..).zip(saved.iter().zip(&self.devices)).all(in_place);
        if !is_first {
            return Err(Refused::Devices {
                saved: saved.iter().map(|device| device.name.clone()).collect(),
                found: self.devices.clone(),
            });
        }
        if self.has_its_tag {
            Ok(())
        } else {
            Err(Refused::Tag)
        }
    }
}

fn check_size(saved: Size, config: &Config) -> Result<(), Refused> {
    let fields = [
        ("memory_mib", saved.memory_mib, config.memory_mib),
        ("vcpus", saved.vcpus.into(), config.vcpus.into()),
        ("max_vcpus", saved.max_vcpus.into(), config.max_vcpus.into()),
    ];
    match fields.into_iter().find(|(_, saved, found)| saved != found) {
        Some((field, saved, found)) => Err(Refused::Size { field, saved, found }),
        None => Ok(()),
    }
}

/// Compares the words of both command lines, as the VMM composes a line of words.
fn check_command_line(saved: &str, found: &str) -> Result<(), Refused> {
    let words = |line: &'_ str| -> Vec<String> {
        let words = line.split(' ').filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    };
    if words(saved) == words(found) {
        return Ok(());
    }
    Err(Refused::CommandLine {
        saved: saved.to_owned(),
        found: found.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_shortage_says_nothing_of_the_template() {
        let failed = |errno| io::Error::from_raw_os_error(errno);
        let read = |errno| {
            Refused::Open(OpenError::Io {
                file: "state".into(),
                reason: failed(errno),
            })
        };
        let mapped = |errno| {
            let (bytes, source) = (1, failed(errno));
            Refused::Host(Failure::at("map guest memory")(memory::Error::Map {
                bytes,
                source,
            }))
        };
        let kvm = |errno| {
            let error = kvm::error_at("creating a VM")(kvm_ioctls::Error::new(errno));
            Refused::Host(Failure::at("compare the host")(error))
        };
        for shortage in [
            read(libc::ENFILE),
            mapped(libc::ENOMEM),
            kvm(libc::ENOMEM),
            Refused::Descriptor(failed(libc::EMFILE)),
        ] {
            assert!(shortage.is_transient(), "{shortage}");
        }
        let end = OpenError::Io {
            file: "state".into(),
            reason: io::ErrorKind::UnexpectedEof.into(),
        };
        let missing = Failure::at("compare the host")(machine::Error::MissingVcpu(1));
        for fault in [
            Refused::Open(end),
            read(libc::EIO),
            mapped(libc::EINVAL),
            Refused::Host(missing),
            Refused::Tag,
        ] {
            assert!(!fault.is_transient(), "{fault}");
        }
    }
}
