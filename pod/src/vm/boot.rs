//! What a VMM gets to boot a VM: its files, and the message that configures it. [`super::Vm`] sends them.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use nacre_protocol::config::Config;
use nacre_protocol::console;
use nacre_protocol::control::{Attachments, Configure, DeviceConfig, TemplateFiles, ToVmm};
use nacre_protocol::guest::SHARED_TAG;
use nacre_protocol::stream_table::{self, StreamTable};

use super::{Error, system};
use crate::network::Nic;
use crate::size::VmSize;
use crate::sys;
use crate::template::Template;

/// The files that a VMM gets.
pub(super) struct Files {
    pub(super) boot: BootFiles,
    /// The console's ring, which the engine reads.
    pub(super) console: File,
    pub(super) stream_table: StreamTable,
}

/// The files that only the VMM needs.
#[derive(Debug)]
pub(super) struct BootFiles {
    kvm: File,
    kernel: File,
    initrd: File,
}

impl Files {
    pub(super) fn open(config: &Config) -> Result<Self, Error> {
        Ok(Self {
            boot: BootFiles {
                kvm: open("/dev/kvm", Path::new("/dev/kvm"), true)?,
                kernel: open("guest kernel", &config.kernel, false)?,
                initrd: open("guest image", &config.initrd, false)?,
            },
            console: sys::memory_file("nacre-console", console::RING_BYTES)
                .map_err(system("console ring"))?,
            stream_table: sys::memory_file("nacre-streams", stream_table::TABLE_BYTES)
                .map(StreamTable::new)
                .map_err(system("stream table"))?,
        })
    }
}

/// The VM to boot.
#[derive(Debug)]
pub struct Boot<'a> {
    /// Nacre's configuration.
    pub config: &'a Config,
    /// Memory and vCPUs.
    pub size: VmSize,
    /// The pod's id, for messages.
    pub id: &'a str,
    /// From [`super::Vm::start`].
    pub stream_table: &'a StreamTable,
    /// The links of the pod's network.
    pub nics: &'a [Nic],
    /// Where the guest continues instead of booting.
    pub template: Option<&'a Template>,
}

impl<'a> Boot<'a> {
    /// The message that configures the VMM, and the descriptors that it names.
    pub(super) fn configuration(&self, files: &'a BootFiles, console: &'a File) -> (ToVmm, Attachments<'a>) {
        let mut attachments = Attachments::default();
        let mut devices = vec![
            DeviceConfig::Vsock {
                stream_table: attachments.add(self.stream_table.file().as_fd()),
            },
            DeviceConfig::Fs {
                tag: SHARED_TAG.to_owned(),
            },
        ];
        let nics = self.nics.iter().map(|nic| net_device(nic, &mut attachments));
        devices.extend(nics);
        let template = self.template.map(|template| TemplateFiles {
            state: attachments.add(template.state.as_fd()),
            memory: attachments.add(template.memory.as_fd()),
        });
        let message = ToVmm::Configure(Configure {
            build_id: nacre_protocol::BUILD_ID.to_owned(),
            pod: self.id.to_owned(),
            memory_mib: self.size.boot_mib,
            vcpus: self.size.vcpus,
            max_vcpus: self.size.max_vcpus,
            extra_cmdline: self.config.kernel_params.clone(),
            console_to_stderr: self.config.console_to_log,
            kvm: attachments.add(files.kvm.as_fd()),
            kernel: attachments.add(files.kernel.as_fd()),
            initrd: attachments.add(files.initrd.as_fd()),
            console_ring: attachments.add(console.as_fd()),
            template,
            devices,
        });
        (message, attachments)
    }
}

/// The device of a link; its taps are added to `attachments`.
pub(super) fn net_device<'a>(nic: &'a Nic, attachments: &mut Attachments<'a>) -> DeviceConfig {
    DeviceConfig::Net {
        taps: nic.taps.iter().map(|tap| attachments.add(tap.as_fd())).collect(),
        mac: nic.mac,
        mtu: nic.mtu,
    }
}

pub(super) fn open(what: &'static str, path: &Path, write: bool) -> Result<File, Error> {
    let source = match File::options().read(true).write(write).open(path) {
        Ok(file) => return Ok(file),
        Err(source) => source,
    };
    // The path follows it in the message.
    let what = if what == "/dev/kvm" {
        "the KVM device"
    } else {
        what
    };
    Err(Error::Open {
        what,
        path: path.to_owned(),
        source,
    })
}
