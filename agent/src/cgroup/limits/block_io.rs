//! Limits of a container's disks: `linux.resources.blockIO`, which names block devices by the host's numbers, as lines
//! of io.max, which have the guest's (Documentation/admin-guide/cgroup-v2.rst, "IO Interface Files"). Pure.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::List;
use crate::disk::DisksByHostNumber;
use crate::error::Error;

/// Adds the settings that `block_io` asks for. A rate of 0 is none, as under runc.
///
/// # Errors
/// [`Error::BadSpec`] for a device that is none of `disks`. Files of the container that lie on this device of the host
/// are read and written by the host, where no limit of the guest holds.
pub fn settings(block_io: &LinuxBlockIo, disks: &DisksByHostNumber, list: &mut List) -> Result<(), Error> {
    let limits = [
        (
            "linux.resources.blockIO.throttleReadBpsDevice",
            "rbps",
            block_io.throttle_read_bps_device(),
        ),
        (
            "linux.resources.blockIO.throttleWriteBpsDevice",
            "wbps",
            block_io.throttle_write_bps_device(),
        ),
        (
            "linux.resources.blockIO.throttleReadIOPSDevice",
            "riops",
            block_io.throttle_read_iops_device(),
        ),
        (
            "linux.resources.blockIO.throttleWriteIOPSDevice",
            "wiops",
            block_io.throttle_write_iops_device(),
        ),
    ];
    for (field, key, devices) in limits {
        for device in devices.iter().flatten() {
            list.set(field, "io.max", line(field, key, device, disks)?);
        }
    }
    Ok(())
}

fn line(
    field: &'static str,
    key: &str,
    device: &LinuxThrottleDevice,
    disks: &DisksByHostNumber,
) -> Result<String, Error> {
    let (major, minor) = (device.major(), device.minor());
    let number = u32::try_from(major).ok().zip(u32::try_from(minor).ok());
    let Some(disk) = number.and_then(|number| disks.get(&number)) else {
        return Err(Error::bad_spec(
            field,
            format!(
                "{major}:{minor} is not in linux.devices: only a block device of the container can have limits"
            ),
        ));
    };
    let rate = match device.rate() {
        0 => "max".to_owned(),
        rate => rate.to_string(),
    };
    Ok(format!("{}:{} {key}={rate}", disk.major, disk.minor))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::super::{Setting, settings};
    use super::*;
    use crate::disk::GuestDisk;

    fn settings_of(block_io: &Value) -> Result<Vec<Setting>, Error> {
        let disk = GuestDisk {
            node: "/dev/vdb".into(),
            major: 254,
            minor: 16,
        };
        let resources = serde_json::from_value(json!({ "blockIO": block_io })).unwrap();
        settings(&resources, &BTreeMap::from([((7, 3), disk)]))
    }

    #[test]
    fn limits_have_the_numbers_of_the_guest() {
        let of = |rate: u64| json!([{"major": 7, "minor": 3, "rate": rate}]);
        let all = json!({"throttleReadBpsDevice": of(1), "throttleWriteBpsDevice": of(2),
            "throttleReadIOPSDevice": of(3), "throttleWriteIOPSDevice": of(0)});
        let set: Vec<_> = (settings_of(&all).unwrap().into_iter())
            .map(|setting| {
                assert_eq!(setting.file, "io.max");
                setting.change
            })
            .collect();
        let line = |text: &str| super::super::Change::Set(text.to_owned());
        let wanted = [
            "254:16 rbps=1",
            "254:16 wbps=2",
            "254:16 riops=3",
            "254:16 wiops=max",
        ]
        .map(line);
        assert_eq!(set, wanted);
    }

    #[test]
    fn a_device_that_the_container_does_not_have_is_refused() {
        let error = settings_of(&json!({"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]}));
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("throttleReadBpsDevice: 8:0 is not in linux.devices"),
            "{text}"
        );
    }
}
