//! Tables of `linux.resources` and the settings they become.

use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::cgroup::writer::full_pipe::FullPipe;

const NO_DISKS: DisksByHostNumber = DisksByHostNumber::new();

fn resources(json: Value) -> LinuxResources {
    serde_json::from_value(json).unwrap()
}

/// The settings of `json`, one line per setting: `file=text`, `?=` for SetIfPresent, `=…` for SetSecondField.
fn lines(json: Value) -> Vec<String> {
    let line = |setting: Setting| match setting.change {
        Change::Set(text) => format!("{}={text}", setting.file),
        Change::SetIfPresent(text) => format!("{}?={text}", setting.file),
        Change::SetSecondField(text) => format!("{}=… {text}", setting.file),
        Change::RequireAtMost(most) => format!("{}<={most}", setting.file),
    };
    settings(&resources(json), &NO_DISKS)
        .unwrap()
        .into_iter()
        .map(line)
        .collect()
}

#[test]
fn each_resource_becomes_files_of_cgroup_v2() {
    for (json, want) in [
        (json!({}), &[][..]),
        (json!({"cpu": {"shares": 1024}}), &["cpu.weight=100"]),
        (json!({"cpu": {"shares": 0, "quota": 0, "period": 0}}), &[]),
        (
            json!({"cpu": {"quota": 50_000, "period": 100_000}}),
            &["cpu.max=50000 100000"],
        ),
        (json!({"cpu": {"quota": 50_000}}), &["cpu.max=50000"]),
        (
            json!({"cpu": {"quota": -1, "period": 20_000}}),
            &["cpu.max=max 20000"],
        ),
        (json!({"cpu": {"quota": -1}}), &["cpu.max=max"]),
        (json!({"cpu": {"period": 20_000}}), &["cpu.max=… 20000"]),
        (
            json!({"cpu": {"quota": 50_000, "burst": 1000}}),
            &["cpu.max.burst=0", "cpu.max=50000", "cpu.max.burst=1000"],
        ),
        (json!({"cpu": {"burst": 1000}}), &["cpu.max.burst=1000"]),
        (json!({"cpu": {"idle": 0}}), &["cpu.idle=0"]),
        (json!({"cpu": {"idle": 1}}), &["cpu.idle=1"]),
        (
            json!({"cpu": {"idle": 1, "shares": 2}}),
            &["cpu.idle=0", "cpu.weight=1", "cpu.idle=1"],
        ),
        (
            json!({"cpu": {"idle": 0, "shares": 2}}),
            &["cpu.idle=0", "cpu.weight=1"],
        ),
        (json!({"cpu": {"cpus": "0-1,3"}}), &["cpuset.cpus=0-1,3"]),
        (json!({"cpu": {"cpus": ""}}), &[]),
        (json!({"pids": {"limit": 50}}), &["pids.max=50"]),
        (json!({"pids": {"limit": 0}}), &["pids.max=0"]),
        (json!({"pids": {"limit": -1}}), &["pids.max=max"]),
        (
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}]}),
            &["hugetlb.2MB.max=4194304", "hugetlb.2MB.rsvd.max?=4194304"],
        ),
        (
            json!({"unified": {"memory.high": "1", "io.max": "a\nb", "cgroup.max.depth": "3"}}),
            &["cgroup.max.depth=3", "io.max=a\nb", "memory.high=1"],
        ),
        (
            json!({"unified": {"memory.max": "1"}, "memory": {"limit": 5}}),
            &["memory.max=5", "memory.max=1"],
        ),
        (json!({"devices": [{"allow": false, "access": "rwm"}]}), &[]),
    ] {
        assert_eq!(lines(json.clone()), want, "{json}");
    }
}

#[test]
fn memory_and_swap_become_separate_limits() {
    for (json, want) in [
        (json!({}), &[][..]),
        (json!({"limit": 1000}), &["memory.max=1000"]),
        (json!({"limit": 0, "swap": 0, "reservation": 0}), &[]),
        (json!({"limit": -1}), &["memory.swap.max?=max", "memory.max=max"]),
        (
            json!({"limit": 1000, "swap": 1500}),
            &["memory.swap.max?=500", "memory.max=1000"],
        ),
        (
            json!({"limit": 1000, "swap": 1000}),
            &["memory.swap.max?=0", "memory.max=1000"],
        ),
        (
            json!({"limit": 1000, "swap": -1}),
            &["memory.swap.max?=max", "memory.max=1000"],
        ),
        (json!({"swap": -1}), &["memory.swap.max?=max"]),
        (
            json!({"limit": -1, "swap": -1}),
            &["memory.swap.max?=max", "memory.max=max"],
        ),
        (json!({"reservation": 500}), &["memory.low=500"]),
        (json!({"reservation": -1}), &["memory.low=max"]),
        (
            json!({"limit": 1000, "checkBeforeUpdate": true}),
            &["memory.current<=1000", "memory.max=1000"],
        ),
        (
            json!({"limit": -1, "checkBeforeUpdate": true}),
            &["memory.swap.max?=max", "memory.max=max"],
        ),
        (
            json!({"checkBeforeUpdate": true, "disableOOMKiller": false, "useHierarchy": true}),
            &[],
        ),
    ] {
        assert_eq!(lines(json!({"memory": json})), want, "{json}");
    }
}

#[test]
fn weights_match_runc_at_minimum_default_and_maximum() {
    for (shares, want) in [
        (1, 1),
        (2, 1),
        (1024, 100),
        (262_144, 10_000),
        (u64::MAX, 10_000),
        (512, 59),
        (2048, 174),
    ] {
        assert_eq!(weight(shares), want, "{shares}");
    }
    let all: Vec<u32> = (2..262_144).step_by(997).map(weight).collect();
    assert!(all.is_sorted());
}

#[test]
fn settings_are_applied_in_order_until_one_fails() {
    let directory = tempfile::tempdir().unwrap();
    let path = |file: &str| directory.path().join(file);
    for (file, text) in [
        ("cpu.max", "40000 100000\n"),
        ("memory.current", "900\n"),
        ("memory.max", "max\n"),
    ] {
        fs::write(path(file), text).unwrap();
    }
    let apply = |json: Value| apply(directory.path(), &settings(&resources(json), &NO_DISKS).unwrap());
    apply(
        json!({"cpu": {"period": 50_000}, "memory": {"limit": 900, "swap": 900, "checkBeforeUpdate": true}}),
    )
    .unwrap();
    // These are ordinary files, which keep the rest of their old content.
    assert!(
        fs::read_to_string(path("cpu.max"))
            .unwrap()
            .starts_with("40000 50000")
    );
    assert_eq!(fs::read_to_string(path("memory.max")).unwrap(), "900\n");
    assert!(!path("memory.swap.max").exists());
    let error = apply(json!({"memory": {"limit": 899, "checkBeforeUpdate": true}}))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("linux.resources.memory.checkBeforeUpdate: 900 bytes are in use"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(path("memory.max")).unwrap(), "900\n");
    let error = apply(json!({"hugepageLimits": [{"pageSize": "16GB", "limit": 1}]}))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(
            "linux.resources.hugepageLimits: the guest's kernel has no cgroup file hugetlb.16GB.max"
        ),
        "{error}"
    );
}

#[test]
fn an_update_that_reclaims_does_not_block_the_event_loop() {
    let directory = tempfile::tempdir().unwrap();
    let mut pipe = FullPipe::new();
    std::os::unix::fs::symlink(pipe.path(), directory.path().join("memory.max")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let limits = settings(
        &resources(json!({"memory": {"limit": 7}, "pids": {"limit": 8}})),
        &NO_DISKS,
    )
    .unwrap();
    runtime.unwrap().block_on(async {
        let mut updated = Box::pin(update(directory.path(), &limits));
        assert!(futures::poll!(&mut updated).is_pending());
        pipe.empty();
        let error = updated.await.unwrap_err().to_string();
        assert!(error.contains("no cgroup file pids.max"), "{error}");
        fs::remove_file(directory.path().join("memory.max")).unwrap();
        let error = update(directory.path(), &limits).await.unwrap_err().to_string();
        assert!(error.contains("no cgroup file memory.max"), "{error}");
    });
    assert_eq!(pipe.written(), "7");
}
