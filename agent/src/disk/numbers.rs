//! Block devices in a container's spec have the host's numbers, by which the guest has other devices or none.
//! Those that are disks of the container get the guest's. Pure.

use oci_spec::runtime::{LinuxDeviceType, Spec};

use super::DisksByHostNumber;

/// Replaces the numbers of block devices in `linux.devices` and `linux.resources.devices` by those of `disks`.
/// A rule that allows other block devices of the host by number is removed: the guest does not have them. Rules for
/// all numbers stay.
pub fn use_guest_numbers(spec: &mut Spec, disks: &DisksByHostNumber) {
    let Some(linux) = spec.linux_mut() else { return };
    let guest_number = |major: i64, minor: i64| {
        let host = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
        let disk = disks.get(&host)?;
        Some((i64::from(disk.major), i64::from(disk.minor)))
    };
    for device in linux.devices_mut().iter_mut().flatten() {
        if device.typ() == LinuxDeviceType::B
            && let Some((major, minor)) = guest_number(device.major(), device.minor())
        {
            device.set_major(major);
            device.set_minor(minor);
        }
    }
    let Some(resources) = linux.resources_mut() else {
        return;
    };
    let Some(rules) = resources.devices_mut() else {
        return;
    };
    rules.retain_mut(|rule| {
        if rule.typ() != Some(LinuxDeviceType::B) {
            return true;
        }
        let is_any = |number: Option<i64>| matches!(number, None | Some(-1));
        if is_any(rule.major()) && is_any(rule.minor()) {
            return true;
        }
        let number = rule.major().zip(rule.minor());
        match number.and_then(|(major, minor)| guest_number(major, minor)) {
            Some((major, minor)) => {
                rule.set_major(Some(major));
                rule.set_minor(Some(minor));
                true
            }
            None => !rule.allow(),
        }
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::disk::GuestDisk;

    #[test]
    fn disks_of_the_container_get_the_guest_s_numbers() {
        let device =
            |kind: &str, major: u32| json!({"type": kind, "path": "/dev/x", "major": major, "minor": 1});
        let rule = |allow: bool, kind: &str, major: i64, minor: i64| json!({"allow": allow, "type": kind, "major": major, "minor": minor, "access": "rw"});
        let mut spec: Spec = serde_json::from_value(json!({"ociVersion": "1.0", "linux": {
            "devices": [device("b", 8), device("c", 8)],
            "resources": {"devices": [rule(false, "b", -1, -1), rule(true, "b", 8, 1), rule(true, "c", 8, 1),
                rule(true, "b", 8, 2), rule(true, "b", 8, -1), rule(false, "b", 8, 3)]}
        }}))
        .unwrap();
        let disk = GuestDisk {
            node: "/dev/vda".into(),
            major: 254,
            minor: 16,
        };
        use_guest_numbers(&mut spec, &BTreeMap::from([((8, 1), disk)]));
        let spec = serde_json::to_value(&spec).unwrap();
        let numbers = |value: &Value| [&value["major"], &value["minor"]].map(|number| number.as_i64());
        let devices = spec["linux"]["devices"].as_array().unwrap();
        assert_eq!(numbers(&devices[0]), [Some(254), Some(16)]);
        assert_eq!(numbers(&devices[1]), [Some(8), Some(1)]);
        let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
        let rules: Vec<_> = rules
            .iter()
            .map(|rule| (rule["allow"].as_bool(), rule["type"].as_str(), numbers(rule)))
            .collect();
        assert_eq!(
            rules,
            [
                (Some(false), Some("b"), [Some(-1), Some(-1)]),
                (Some(true), Some("b"), [Some(254), Some(16)]),
                (Some(true), Some("c"), [Some(8), Some(1)]),
                (Some(false), Some("b"), [Some(8), Some(3)]),
            ]
        );
    }
}
