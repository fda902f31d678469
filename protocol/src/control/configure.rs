//! The first message to the VMM: the VM to run, as a list of its devices and a few named files. Written by
//! the engine, checked and carried out by the VMM. Pure.

use serde::{Deserialize, Serialize};

use super::FdIndex;

/// Most devices of a VM.
pub const MAX_DEVICES: usize = 64;
/// Granularity of [`DeviceConfig::Mem`]'s size in MiB: the blocks in which Linux adds memory on x86-64.
pub const MEMORY_SECTION_MIB: u32 = 128;
/// Most memory that can be plugged in, in MiB: 256 GiB.
pub const MAX_PLUGGED_MIB: u32 = 256 * 1024;
/// Most network devices of a VM.
pub const MAX_NETS: usize = 16;
/// Most taps, and so queue pairs, of a network device.
pub const MAX_TAPS: usize = 8;
/// Most disks of a VM at once.
pub const MAX_DISKS: usize = 24;
/// Smallest MTU of a network device, as IPv4 requires.
pub const MIN_MTU: u16 = 68;

/// The VM to run. Each descriptor that is sent with the message is named by exactly one field, here or in
/// [`Configure::devices`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configure {
    /// The sender's [`crate::BUILD_ID`]. The VMM compares it before it reads any other field.
    pub build_id: String,
    /// The pod's id, for messages.
    pub pod: String,
    /// Guest memory at boot, MiB.
    pub memory_mib: u32,
    /// vCPUs that are online at boot, 1..=32.
    pub vcpus: u8,
    /// vCPUs that are present, `vcpus`..=32. The guest can online the others later.
    pub max_vcpus: u8,
    /// Appended to the kernel command line that the VMM composes.
    pub extra_cmdline: String,
    /// Whether the guest's console is also copied to the VMM's standard error.
    pub console_to_stderr: bool,
    /// `/dev/kvm`, open for reading and writing.
    pub kvm: FdIndex,
    /// The guest kernel (vmlinux).
    pub kernel: FdIndex,
    /// The guest's initramfs.
    pub initrd: FdIndex,
    /// A memfd of [`crate::console::RING_BYTES`] for the console's last bytes.
    pub console_ring: FdIndex,
    /// Where the guest continues instead of booting. The VMM boots it if it can't use these files
    /// ([`super::FromVmm::TemplateRefused`]).
    pub template: Option<TemplateFiles>,
    /// The virtio devices that need something from the host, 1..=[`MAX_DEVICES`], in the order in which the
    /// guest finds them. The VMM adds those that every VM has.
    pub devices: Vec<DeviceConfig>,
}

/// A snapshot of a booted guest whose agent waits, both files open for reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateFiles {
    /// All but the guest's memory.
    pub state: FdIndex,
    /// The guest's memory.
    pub memory: FdIndex,
}

/// A virtio device, with all that the VMM needs to create it. A file or a socket of the device is a field of
/// type [`FdIndex`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum DeviceConfig {
    /// virtio-vsock; required, since the agent connects by it. The VMM reports the connections that are
    /// expected ([`super::FromVmm::Connection`]): the first one to [`crate::vsock::AGENT_PORT`], and those to
    /// the addresses in the table.
    Vsock {
        /// The memfd of a [`crate::stream_table::StreamTable`].
        stream_table: FdIndex,
    },
    /// virtio-fs. The tree is the root of the VMM's mount namespace, into which the engine moves mounts.
    Fs {
        /// The tag by which the guest mounts the tree, 1 to 36 bytes.
        tag: String,
    },
    /// virtio-mem: memory that is plugged in while the VM runs ([`super::Request::PlugMemory`]). None is at
    /// boot.
    Mem {
        /// Most memory that can be plugged in besides [`Configure::memory_mib`], in MiB: a multiple of
        /// [`MEMORY_SECTION_MIB`], at most [`MAX_PLUGGED_MIB`]. It costs the host nothing until it is used.
        max_mib: u32,
    },
    /// virtio-net.
    Net {
        /// The tap of each queue pair, 1..=[`MAX_TAPS`]: a file of /dev/net/tun with the flags IFF_TAP,
        /// IFF_NO_PI and IFF_VNET_HDR, and IFF_MULTI_QUEUE if there are several. The VMM makes it
        /// non-blocking and sets the header's size.
        taps: Vec<FdIndex>,
        /// The guest's address: unicast, and not all zeros.
        mac: [u8; 6],
        /// The MTU that the guest's driver sets, at least [`MIN_MTU`].
        mtu: u16,
    },
    /// virtio-blk: a disk.
    Blk {
        /// A regular file or a block device, open for reading, and for writing unless `read_only`. Its size is
        /// that of the disk, in whole sectors of 512 bytes.
        file: FdIndex,
        /// Whether the guest can't write it.
        read_only: bool,
        /// What the guest finds as `/sys/block/<disk>/serial`: at most 20 letters, digits and characters of
        /// `-_.`.
        serial: String,
        /// The number of queues, 1..=8.
        queues: u16,
    },
}

/// Checks the size of [`DeviceConfig::Mem`].
///
/// # Errors
/// [`DeviceListError::PluggedMemory`].
pub fn check_pluggable(max_mib: u32) -> Result<(), DeviceListError> {
    if max_mib.is_multiple_of(MEMORY_SECTION_MIB) && (1..=MAX_PLUGGED_MIB).contains(&max_mib) {
        Ok(())
    } else {
        Err(DeviceListError::PluggedMemory(max_mib))
    }
}

impl DeviceConfig {
    /// The name of the device's kind, such as "vsock", which is also the VMM's name of the device.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.kind().0
    }

    /// The name of the device's kind, and how many of that kind a VM may have.
    fn kind(&self) -> (&'static str, usize) {
        match self {
            Self::Vsock { .. } => ("vsock", 1),
            Self::Fs { .. } => ("fs", 1),
            Self::Mem { .. } => ("mem", 1),
            Self::Net { .. } => ("net", MAX_NETS),
            Self::Blk { .. } => ("blk", MAX_DISKS),
        }
    }
}

/// Why a list of devices is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeviceListError {
    /// The list is longer than [`MAX_DEVICES`].
    #[error("devices: {0} devices, but a VM has at most {MAX_DEVICES}")]
    TooMany(usize),
    /// More devices of this kind than a VM may have.
    #[error("devices: {count} devices of kind {kind}, but a VM has at most {most}")]
    TooManyOfKind {
        /// The kind's name.
        kind: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// The guest could not connect to the host.
    #[error("devices: a vsock device is required")]
    NoVsock,
    /// [`DeviceConfig::Mem::max_mib`] is out of range.
    #[error(
        "devices: mem: max_mib = {0}: must be a multiple of {MEMORY_SECTION_MIB} from {MEMORY_SECTION_MIB} to \
         {MAX_PLUGGED_MIB}"
    )]
    PluggedMemory(u32),
}

impl Configure {
    /// Checks the number of devices, in all and of each kind, and the size of memory that can be plugged in.
    ///
    /// # Errors
    /// [`DeviceListError`] with the first limit that the list violates.
    pub fn check_devices(&self) -> Result<(), DeviceListError> {
        if self.devices.len() > MAX_DEVICES {
            return Err(DeviceListError::TooMany(self.devices.len()));
        }
        for device in &self.devices {
            let (kind, most) = device.kind();
            let same_kind = |other: &&DeviceConfig| other.kind().0 == kind;
            let count = self.devices.iter().filter(same_kind).count();
            if count > most {
                return Err(DeviceListError::TooManyOfKind { kind, count, most });
            }
            if let DeviceConfig::Mem { max_mib } = *device {
                check_pluggable(max_mib)?;
            }
        }
        let is_vsock = |device: &DeviceConfig| matches!(device, DeviceConfig::Vsock { .. });
        if !self.devices.iter().any(is_vsock) {
            return Err(DeviceListError::NoVsock);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn message() -> Value {
        json!({
            "build_id": "b", "pod": "p", "memory_mib": 64, "vcpus": 1, "max_vcpus": 2, "extra_cmdline": "",
            "console_to_stderr": false, "kvm": 0, "kernel": 1, "initrd": 2, "console_ring": 3,
            "template": {"state": 8, "memory": 9},
            "devices": [vsock(), {"Fs": {"tag": "t"}}, net(), blk()],
        })
    }

    fn vsock() -> Value {
        json!({"Vsock": {"stream_table": 4}})
    }

    fn mem(max_mib: u32) -> Value {
        json!({"Mem": {"max_mib": max_mib}})
    }

    fn net() -> Value {
        json!({"Net": {"taps": [5, 6], "mac": [2, 0, 0, 0, 0, 1], "mtu": 1500}})
    }

    fn blk() -> Value {
        json!({"Blk": {"file": 7, "read_only": true, "serial": "d1", "queues": 1}})
    }

    fn with(field: &str, value: Value) -> Result<Configure, serde_json::Error> {
        let mut message = message();
        message[field] = value;
        serde_json::from_value(message)
    }

    #[test]
    fn the_form_in_json_is_read_and_written() {
        let configure: Configure = serde_json::from_value(message()).unwrap();
        assert_eq!(configure.kernel, FdIndex(1));
        assert_eq!(configure.check_devices(), Ok(()));
        assert_eq!(serde_json::to_value(&configure).unwrap(), message());
    }

    #[test]
    fn fields_and_devices_that_do_not_exist_are_refused_by_name() {
        for (field, value, named) in [
            ("extra", json!(1), "extra"),
            ("kernel", json!(256), "256"),
            ("kernel", json!(-1), "-1"),
            ("kernel", json!(null), "null"),
            ("template", json!({"state": 8}), "memory"),
            ("devices", json!(["Floppy"]), "Floppy"),
            ("devices", json!(["Vsock"]), "unit variant"),
            ("devices", json!([{"Vsock": {}}]), "stream_table"),
            ("devices", json!([{"Fs": {"tag": "t", "root": "/etc"}}]), "root"),
            ("devices", json!([{"Fs": {}}]), "tag"),
            ("devices", json!([{"Mem": {}}]), "max_mib"),
            ("devices", json!([{"Mem": {"max_mib": -128}}]), "-128"),
            (
                "devices",
                json!([{"Net": {"taps": [], "mac": [2, 0, 0, 0, 0, 1]}}]),
                "mtu",
            ),
            (
                "devices",
                json!([{"Net": {"taps": [256], "mac": [2, 0, 0, 0, 0, 1], "mtu": 1500}}]),
                "256",
            ),
            (
                "devices",
                json!([{"Net": {"taps": [5], "mac": [2, 0, 0], "mtu": 1500}}]),
                "length 3",
            ),
            (
                "devices",
                json!([{"Blk": {"file": 7, "read_only": true, "serial": "d1"}}]),
                "queues",
            ),
            ("devices", json!({}), "sequence"),
        ] {
            let error = with(field, value.clone()).unwrap_err().to_string();
            assert!(error.contains(named), "{field} = {value}: {error}");
        }
        let required = message();
        let required = required
            .as_object()
            .unwrap()
            .keys()
            .filter(|field| *field != "template");
        for field in required {
            let mut without = message();
            without.as_object_mut().unwrap().remove(field);
            let error = serde_json::from_value::<Configure>(without)
                .unwrap_err()
                .to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn a_list_of_devices_has_limits() {
        let twice = |kind, count| DeviceListError::TooManyOfKind { kind, count, most: 1 };
        for (devices, expected) in [
            (json!([]), DeviceListError::NoVsock),
            (json!([{"Fs": {"tag": "t"}}]), DeviceListError::NoVsock),
            (json!([vsock(), vsock()]), twice("vsock", 2)),
            (
                json!([vsock(), {"Fs": {"tag": "a"}}, {"Fs": {"tag": "b"}}]),
                twice("fs", 2),
            ),
            (json!([vsock(), mem(128), mem(128)]), twice("mem", 2)),
            (
                json!([vec![vsock()], vec![net(); MAX_NETS + 1]].concat()),
                DeviceListError::TooManyOfKind {
                    kind: "net",
                    count: MAX_NETS + 1,
                    most: MAX_NETS,
                },
            ),
            (
                json!([vec![vsock()], vec![blk(); MAX_DISKS + 1]].concat()),
                DeviceListError::TooManyOfKind {
                    kind: "blk",
                    count: MAX_DISKS + 1,
                    most: MAX_DISKS,
                },
            ),
            (json!(vec![vsock(); MAX_DEVICES]), twice("vsock", MAX_DEVICES)),
            (
                json!(vec![vsock(); MAX_DEVICES + 1]),
                DeviceListError::TooMany(MAX_DEVICES + 1),
            ),
        ] {
            let configure = with("devices", devices.clone()).unwrap();
            assert_eq!(configure.check_devices(), Err(expected), "{devices}");
        }
    }

    #[test]
    fn memory_that_can_be_plugged_in_has_limits() {
        for (max_mib, valid) in [
            (0, false),
            (1, false),
            (MEMORY_SECTION_MIB, true),
            (MEMORY_SECTION_MIB + 2, false),
            (MAX_PLUGGED_MIB, true),
            (MAX_PLUGGED_MIB + MEMORY_SECTION_MIB, false),
            (u32::MAX, false),
        ] {
            let configure = with("devices", json!([vsock(), mem(max_mib)])).unwrap();
            let expected = if valid {
                Ok(())
            } else {
                Err(DeviceListError::PluggedMemory(max_mib))
            };
            assert_eq!(configure.check_devices(), expected, "{max_mib}");
        }
    }
}
