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
    assert_eq!(paths, ["linux.resources.x", "linux.resources.devices"]);
    assert_eq!(
        resources,
        json!({"memory": {"limit": 5}, "cpu": {"cpus": "0", "shares": 2}})
    );
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
fn disks_are_ignored_if_every_device_is_allowed_and_kept_otherwise() {
    let mut spec = minimal();
    let disk = |n: u32| json!({"type": "b", "path": format!("/dev/disk{n}"), "major": 8, "minor": n});
    let tty = json!({"type": "c", "path": "/dev/tty", "major": 5, "minor": 0});
    let mut devices: Vec<Value> = (0..500).map(disk).collect();
    devices.push(tty.clone());
    spec["linux"] = json!({"devices": devices, "resources": {"devices": [{"allow": false, "access": "rwm"},
        {"allow": true, "access": "rwm"}]}});
    let mut restricted = spec.clone();
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
        restricted["linux"]["resources"]["devices"] = json!([rule]);
        let mut checked = restricted.clone();
        assert_eq!(filter_spec(&mut checked), Findings::default(), "{rule}");
        assert_eq!(
            checked["linux"]["devices"], restricted["linux"]["devices"],
            "{rule}"
        );
    }
}

/// What the check of `resources` refuses.
fn refusals(resources: &Value) -> String {
    filter_update(&mut resources.clone()).refusals()
}

#[test]
fn resources_that_request_nothing_are_removed() {
    for nothing in [
        json!({"network": {"priorities": []}}),
        json!({"network": {"classID": 0, "priorities": [{"name": ""}]}}),
        json!({"rdma": {"a": {}}}),
        json!({"rdma": {"a": null}}),
    ] {
        let mut resources = nothing.clone();
        assert_eq!(filter_update(&mut resources), Findings::default(), "{nothing}");
        assert_eq!(resources, json!({}), "{nothing}");
    }
    let mut resources = json!({"blockIO": {"weight": 0, "weightDevice": [], "throttleReadBpsDevice": []}});
    assert_eq!(filter_update(&mut resources), Findings::default());
    assert_eq!(resources, json!({"blockIO": {"throttleReadBpsDevice": []}}));
    let mut spec = minimal();
    spec["linux"] = json!({"netDevices": {"eth0": {}}, "intelRdt": {"schemata": []}, "memoryPolicy": {},
        "resources": {"rdma": {"a": {}}}});
    spec["hooks"] = json!({"createContainer": []});
    assert_eq!(filter_spec(&mut spec), Findings::default());
    assert_eq!(spec["linux"], json!({"resources": {}}));
    assert_eq!(spec["hooks"], json!({}));
    let wrong = json!({"blockIO": {"weightDevice": {}}, "network": 5, "rdma": {"a": {"hcaHandles": 0}}});
    assert_eq!(
        refusals(&wrong).matches(": expected ").count(),
        2,
        "{}",
        refusals(&wrong)
    );
    assert!(refusals(&wrong).contains("linux.resources.rdma[\"a\"].hcaHandles: "));
}

#[test]
fn swap_includes_memory() {
    for (memory, want) in [
        (json!({"limit": 5, "swap": 5}), ""),
        (json!({"limit": 5, "swap": 0}), ""),
        (json!({"limit": 5, "swap": -1}), ""),
        (json!({"swap": -1}), ""),
        (
            json!({"limit": 5, "swap": 4}),
            "linux.resources.memory.swap: expected at least memory.limit, 5, got 4",
        ),
        (
            json!({"swap": 5}),
            "linux.resources.memory.swap: is the limit of memory and swap together and needs memory.limit, which \
             is not set",
        ),
        (
            json!({"limit": -1, "swap": 5}),
            "linux.resources.memory.swap: is the limit of memory and swap together and needs memory.limit, which \
             is not set",
        ),
    ] {
        assert_eq!(refusals(&json!({"memory": memory})), want, "{memory}");
    }
    let mut spec = with("linux.resources.memory", json!({"swap": 5}));
    assert!(
        filter_spec(&mut spec)
            .refusals()
            .starts_with("linux.resources.memory.swap: ")
    );
}

#[test]
fn unified_accepts_only_files_of_controllers() {
    for name in ["memory.high", "io.max", "hugetlb.2MB.max", "cgroup.max.depth"] {
        assert_eq!(refusals(&json!({"unified": {name: "1"}})), "");
    }
    for name in [
        "",
        "memory",
        "memory.",
        ".max",
        "../memory.max",
        "a/b.c",
        "memory.max\n",
        "é.a",
        "cgroup.procs",
        "cgroup.freeze",
        "cgroup.kill",
        "cgroup.type",
        "cgroup.subtree_control",
        &"a.".repeat(65),
    ] {
        let text = refusals(&json!({"unified": {name: "1"}}));
        assert!(text.starts_with("linux.resources.unified["), "{name:?}: {text}");
    }
    let many: serde_json::Map<String, Value> = (0..257).map(|n| (format!("a.{n}"), json!("1"))).collect();
    assert_eq!(
        refusals(&json!({"unified": many})),
        "linux.resources.unified: expected at most 256 files, got 257"
    );
}

#[test]
fn values_that_the_agent_could_not_apply_are_refused() {
    for (resources, path) in [
        (json!({"memory": {"limit": -2}}), "memory.limit"),
        (json!({"memory": {"reservation": -2}}), "memory.reservation"),
        (json!({"cpu": {"quota": -2}}), "cpu.quota"),
        (json!({"cpu": {"idle": 2}}), "cpu.idle"),
        (json!({"cpu": {"idle": -1}}), "cpu.idle"),
        (json!({"cpu": {"cpus": "7-5"}}), "cpu.cpus"),
        (json!({"cpu": {"cpus": "5000"}}), "cpu.cpus"),
        (json!({"cpu": {"cpus": "../x"}}), "cpu.cpus"),
        (json!({"cpu": {"mems": "0 "}}), "cpu.mems"),
        (json!({"pids": {"limit": -2}}), "pids.limit"),
        (
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": -2}]}),
            "hugepageLimits[0].limit",
        ),
        (
            json!({"devices": [{"allow": true, "type": "p"}]}),
            "devices[0].type",
        ),
        (
            json!({"devices": [{"allow": true, "type": "c", "major": -7}]}),
            "devices[0].major",
        ),
        (
            json!({"devices": [{"allow": true, "type": "c", "minor": 4_294_967_296_u64}]}),
            "devices[0].minor",
        ),
        (
            json!({"devices": [{"allow": true, "type": "c", "access": "rx"}]}),
            "devices[0].access",
        ),
        (json!({"devices": vec![json!({"allow": true}); 257]}), "devices"),
    ] {
        let text = refusals(&resources);
        assert!(
            text.starts_with(&format!("linux.resources.{path}: ")),
            "{resources}: {text}"
        );
    }
    for size in [
        "",
        "MB",
        "2",
        "2TB",
        "02MB",
        "../2MB",
        "2 MB",
        "-2MB",
        "99999999999MB",
    ] {
        let text = refusals(&json!({"hugepageLimits": [{"pageSize": size, "limit": 1}]}));
        assert!(text.contains("expected a page size"), "{size}: {text}");
    }
}

#[test]
fn devices_are_below_dev() {
    let refusals = |path: &str| {
        let device = json!({"type": "c", "path": path, "major": 1, "minor": 3});
        filter_spec(&mut with("linux.devices", json!([device]))).refusals()
    };
    for path in ["/dev/x", "/dev/a/b", "/dev/../../x"] {
        assert_eq!(refusals(path), "");
    }
    for path in ["/etc/passwd", "/dev", "/dev/", "dev/x", "/devices/x", ""] {
        let text = refusals(path);
        assert!(
            text.starts_with("linux.devices[0].path: expected a path below /dev"),
            "{text}"
        );
    }
}

#[test]
fn the_cpus_of_an_exec_process_are_a_list() {
    for field in ["initial", "final"] {
        let refusals = |cpus: &str| {
            let process = json!({"args": ["a"], "cwd": "/", "execCPUAffinity": {field: cpus}});
            filter_process(&mut process.clone()).refusals()
        };
        for cpus in ["", "0", "0-2,7"] {
            assert_eq!(refusals(cpus), "");
        }
        for cpus in ["-", "1024", "3-1", "a"] {
            let want = format!("process.execCPUAffinity.{field}: expected a list of CPUs below 1024");
            assert!(refusals(cpus).starts_with(&want), "{}", refusals(cpus));
        }
    }
}
