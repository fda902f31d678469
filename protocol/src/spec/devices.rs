//! `linux.devices` of a container that may use every device: the list is all that the host has (`--privileged`), not what
//! the container wants. Disks in it are left out; elsewhere the table refuses them.

use serde_json::Value;

use super::walk::Findings;

const PATH: &str = "linux.devices";
/// Most characters of names in a finding.
const MAX_NAMES: usize = 400;

/// Takes the disks out of `spec`, where it may use every device.
pub fn leave_out_disks(spec: &mut Value, findings: &mut Findings) {
    if !allows_all(spec) {
        return;
    }
    let mut names = String::new();
    let devices = spec.pointer_mut("/linux/devices").and_then(Value::as_array_mut);
    if let Some(devices) = devices {
        devices.retain(|device| {
            let is_disk = device["type"] == "b";
            if is_disk {
                add_name(&mut names, device["path"].as_str().unwrap_or("?"));
            }
            !is_disk
        });
    }
    if !names.is_empty() {
        findings.ignore(
            PATH,
            format!("disks of the host, which the guest does not have: {names}"),
        );
    }
}

/// Adds a name to a list that does not grow without end.
pub fn add_name(names: &mut String, name: &str) {
    if names.len() < MAX_NAMES {
        let comma = if names.is_empty() { "" } else { ", " };
        names.push_str(comma);
        names.extend(name.chars().take(64).filter(|c| !c.is_control()));
    } else if !names.ends_with('…') {
        names.push_str(", …");
    }
}

/// Whether the rules of `spec` begin from, or come to, every device.
fn allows_all(spec: &Value) -> bool {
    let rules = spec.pointer("/linux/resources/devices").and_then(Value::as_array);
    let any = |rule: &Value, key: &str| matches!(rule[key].as_i64(), None | Some(-1));
    rules.into_iter().flatten().any(|rule| {
        let access = rule["access"].as_str().unwrap_or_default();
        rule["allow"] == true
            && matches!(rule["type"].as_str(), None | Some("" | "a"))
            && any(rule, "major")
            && any(rule, "minor")
            && "rwm".chars().all(|c| access.contains(c))
    })
}
