//! The template of a configuration: whether the guest can continue from it. Called by [`super`] once the jail is
//! closed; refuses it before a device or a vCPU's thread exists, so that the same process can boot the guest.

use std::fs::File;
use std::path::Path;

use nacre_protocol::control::{DescriptorError, Descriptors, DeviceConfig, TemplateFiles};
use nacre_protocol::guest::SHARED_TAG;

use crate::config::Config;
use crate::machine::restore::{SameHost, compare_host};
use crate::machine::{Failure, Resources};
use crate::snapshot::state::Size;
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
    pub vm: SameHost,
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
    /// The host differs from the one that the template was made on.
    #[error(transparent)]
    Host(#[from] Failure),
    /// `/dev/kvm` can't be opened twice.
    #[error("duplicating the descriptor of /dev/kvm: {0}")]
    Descriptor(std::io::Error),
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
        let vm = compare_host(kvm, &snapshot)?;
        Ok(Continuation { snapshot, vm })
    }

    fn check_devices(&self, snapshot: &Snapshot) -> Result<(), Refused> {
        let saved = &snapshot.machine.devices;
        let in_place = |(slot, (saved, found)): (u8, (&crate::snapshot::state::DeviceState, &&str))| {
            saved.slot == slot && saved.name == *found
        };
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
