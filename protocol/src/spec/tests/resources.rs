//! `linux.resources`, and devices.

use serde_json::{Value, json};

use super::*;

#[test]
fn an_update_follows_the_same_table() {
    let mut resources = json!({"memory": {"limit": 5}, "cpu": {"cpus": "0", "shares": 2}, "pids": null, "x": 1,
        "devices": [{"allow": true}]});
    let findings = filter_update(&mut resources);
    assert_eq!(findings.refused, []);
    let paths: Vec<_> = findings
        .ignored
        .iter()
        .map(|finding| finding.path.as_str())
        .collect();
    assert_eq!(
        paths,
        [
            "linux.resources.x",
            "linux.resources.devices",
            "linux.resources.cpu.cpus"
        ]
    );
    assert_eq!(resources, json!({"memory": {"limit": 5}, "cpu": {"shares": 2}}));
    let findings = filter_update(&mut json!({"blockIO": {"weight": 5}, "memory": {"limit": -5}}));
    assert!(
        findings
            .refusals()
            .starts_with("linux.resources.blockIO.weight: "),
        "{findings:?}"
    );
    assert!(
        findings
            .refusals()
            .contains("linux.resources.memory.limit: expected an integer in -1..=")
    );
    assert_eq!(
        filter_update(&mut json!([])).refusals(),
        "linux.resources: expected an object, got a list"
    );
    assert_eq!(
        filter_update(&mut json!({"devices": [], "cpu": {"cpus": ""}})),
        Findings::default()
    );
}

#[test]
fn disks_are_ignored_if_every_device_is_allowed_and_refused_otherwise() {
    let mut spec = minimal();
    let disk = |n: u32| json!({"type": "b", "path": format!("/dev/disk{n}"), "major": 8, "minor": n});
    let tty = json!({"type": "c", "path": "/dev/tty", "major": 5, "minor": 0});
    let mut devices: Vec<Value> = (0..500).map(disk).collect();
    devices.push(tty.clone());
    spec["linux"] = json!({"devices": devices, "resources": {"devices": [{"allow": false, "access": "rwm"},
        {"allow": true, "access": "rwm"}]}});
    let mut refused = spec.clone();
    let findings = filter_spec(&mut spec);
    assert_eq!(findings.refused, []);
    assert_eq!(findings.ignored.len(), 1);
    let reason = &findings.ignored[0].reason;
    assert!(
        reason.contains("/dev/disk0, /dev/disk1, ") && reason.ends_with(", …") && reason.len() < 600,
        "{reason}"
    );
    assert_eq!(spec["linux"]["devices"], json!([tty]));
    for rule in [
        json!({"allow": false, "access": "rwm"}),
        json!({"allow": true, "access": "rw"}),
        json!({"allow": true, "type": "b", "access": "rwm"}),
        json!({"allow": true, "major": 8, "access": "rwm"}),
    ] {
        refused["linux"]["resources"]["devices"] = json!([rule]);
        let findings = filter_spec(&mut refused.clone());
        assert_eq!(findings.refused.len(), 64, "{rule}");
        assert_eq!(findings.refused[0].path, "linux.devices[0].type");
    }
}
