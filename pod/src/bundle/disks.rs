//! The block devices of the host in a container's spec, which become disks of its VM. Pure.

use nacre_protocol::control::MAX_DISKS;
use nacre_protocol::spec::Findings;
use serde_json::Value;

use crate::mount::{Disk, DiskSource};

/// The block devices in `linux.devices`, each once. A device that no rule lets the container write is read-only
/// on the host, too.
pub fn devices(spec: &Value, findings: &mut Findings) -> Vec<Disk> {
    let mut disks: Vec<Disk> = Vec::new();
    let listed = spec["linux"]["devices"].as_array().into_iter().flatten();
    for (index, device) in listed.enumerate().filter(|(_, device)| device["type"] == "b") {
        let number = |key: &str| device[key].as_i64().and_then(|number| u32::try_from(number).ok());
        let (Some(major), Some(minor)) = (number("major"), number("minor")) else {
            findings.refuse(
                format!("linux.devices[{index}].major"),
                "a block device needs the numbers of one of the host",
            );
            continue;
        };
        let disk = Disk {
            source: DiskSource::Device { major, minor },
            read_only: !may_write(spec, major, minor),
        };
        if !disks.contains(&disk) {
            disks.push(disk);
        }
    }
    if disks.len() > MAX_DISKS {
        let count = disks.len();
        findings.refuse(
            "linux.devices",
            format!("{count} block devices, but a VM has at most {MAX_DISKS} disks"),
        );
    }
    disks
}

/// Whether the rules of `spec` let its container write this block device: the last one that matches decides.
fn may_write(spec: &Value, major: u32, minor: u32) -> bool {
    let rules = spec["linux"]["resources"]["devices"].as_array();
    let is = |number: &Value, wanted: u32| {
        matches!(number.as_i64(), None | Some(-1)) || number.as_i64() == Some(wanted.into())
    };
    let mut matching = rules
        .into_iter()
        .flatten()
        .filter(|rule| match rule["type"].as_str() {
            None | Some("" | "a") => true,
            Some("b") => {
                is(&rule["major"], major)
                    && is(&rule["minor"], minor)
                    && rule["access"].as_str().is_none_or(|access| access.contains('w'))
            }
            Some(_) => false,
        });
    matching.next_back().is_some_and(|rule| rule["allow"] == true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_device_is_read_only_unless_a_rule_allows_writing() {
        let rule = |allow: bool, kind: &str, minor: i64, access: &str| json!({"allow": allow, "type": kind, "major": 8, "minor": minor, "access": access});
        let deny_all = json!({"allow": false, "access": "rwm"});
        for (rules, read_only) in [
            (json!([]), true),
            (json!([deny_all]), true),
            (json!([deny_all, rule(true, "b", 1, "rwm")]), false),
            (json!([deny_all, rule(true, "b", -1, "w")]), false),
            (json!([deny_all, rule(true, "b", 1, "rm")]), true),
            (json!([deny_all, rule(true, "b", 2, "rwm")]), true),
            (json!([deny_all, rule(true, "c", 1, "rwm")]), true),
            (json!([rule(true, "b", 1, "rwm"), deny_all]), true),
            (json!([{"allow": true, "access": "rwm"}]), false),
        ] {
            let device = json!({"type": "b", "path": "/dev/x", "major": 8, "minor": 1});
            let spec = json!({"linux": {"devices": [device, device], "resources": {"devices": rules}}});
            let mut findings = Findings::default();
            let disks = devices(&spec, &mut findings);
            assert_eq!(findings.refused, []);
            let source = DiskSource::Device { major: 8, minor: 1 };
            assert_eq!(disks, [Disk { source, read_only }], "{rules}");
        }
    }

    #[test]
    fn more_devices_than_a_vm_has_disks_are_refused() {
        let device = |minor: usize| json!({"type": "b", "path": "/dev/x", "major": 8, "minor": minor});
        let list: Vec<Value> = (0..=MAX_DISKS).map(device).collect();
        let mut findings = Findings::default();
        devices(&json!({"linux": {"devices": list}}), &mut findings);
        assert_eq!(findings.refused[0].path, "linux.devices");
        let mut findings = Findings::default();
        let unnumbered = json!({"linux": {"devices": [{"type": "b", "path": "/dev/x", "major": -1}]}});
        assert_eq!(devices(&unnumbered, &mut findings), []);
        assert_eq!(findings.refused[0].path, "linux.devices[0].major");
    }
}
