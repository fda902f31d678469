//! `linux.devices` of a container that may use every device (`--privileged`). The list then names all devices
//! of the host instead of those that the container wants, so that disks in it are ignored. Otherwise each
//! disk is attached to the VM.

use serde_json::Value;

use super::findings::Findings;

const PATH: &str = "linux.devices";
/// Length of a list of names from which on no more are added, bytes.
const MAX_NAMES: usize = 400;

/// Removes the disks from `spec` if its container may use every device.
pub fn remove_disks(spec: &mut Value, findings: &mut Findings) {
    if !allows_all_devices(spec) {
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
            format!("a container that may use every device does not get the disks of the host: {names}"),
        );
    }
}

/// Adds `name` to the comma-separated list `names`, which is bounded: "…" at its end stands for the names
/// that no longer fit.
pub fn add_name(names: &mut String, name: &str) {
    if names.len() < MAX_NAMES {
        let comma = if names.is_empty() { "" } else { ", " };
        names.push_str(comma);
        names.extend(name.chars().take(64).filter(|c| !c.is_control()));
    } else if !names.ends_with('…') {
        names.push_str(", …");
    }
}

/// Whether a rule of `spec` allows every access to every device.
fn allows_all_devices(spec: &Value) -> bool {
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
