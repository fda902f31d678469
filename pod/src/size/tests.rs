//! Tables of limits, configurations and hosts, and the sizes that follow from them.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::*;

const GIB: i64 = 1 << 30;
const HOST: Host = Host {
    cpus: 8,
    all_cpus: 8,
    memory_mib: 16 * 1024,
};

/// A configuration of no installation.
pub(crate) fn config(max_memory_percent: u8, max_vcpus: Option<u8>) -> Config {
    Config {
        file: None,
        kernel: PathBuf::new(),
        initrd: PathBuf::new(),
        vmm: PathBuf::new(),
        memory_mib: 512,
        max_memory_percent,
        vcpus: 1,
        max_vcpus,
        kernel_params: String::new(),
        console_to_log: false,
        boot_deadline: Duration::from_secs(30),
        writable_layer: None,
        layer_template: PathBuf::new(),
        templates: true,
    }
}

fn limits(memory: i64, quota: i64) -> Limits {
    Limits::from(SizeHints {
        memory_limit: Some(memory),
        cpu_quota: Some(quota),
        ..SizeHints::default()
    })
}

fn plan(limits: Limits) -> VmSize {
    VmSize::plan(&limits, &config(75, None), HOST)
}

fn pod(limits: Limits) -> PodSize {
    PodSize::new(plan(limits), limits, HOST)
}

#[test]
fn the_vm_boots_with_what_its_pod_s_limits_need() {
    for (memory, quota, boot_mib, vcpus) in [
        (0, 0, 512, 1),
        (-1, -1, 512, 1),
        (64 << 20, 50_000, 128 + 64 + 1, 1),
        (1, 250_000, 129, 3),
        (GIB, 200_000, 1024 + 16 + 128, 2),
        // As many bytes as the host has are no limit, as under runc.
        (16 * GIB, 1, 512, 1),
        (i64::MAX, i64::MAX, 512, 8),
        (8 * GIB, 0, 8192 + 130 + 128, 1),
    ] {
        let size = plan(limits(memory, quota));
        assert_eq!((size.boot_mib, size.vcpus), (boot_mib, vcpus), "{memory} {quota}");
    }
}

#[test]
fn the_maximum_is_a_share_of_the_host() {
    for (percent, max_vcpus, host, memory, want) in [
        // 75 % of 16 GiB, in steps of 128 MiB from 512.
        (75, None, HOST, 0, (12 * 1024, 8)),
        (50, Some(4), HOST, 0, (8 * 1024, 4)),
        (1, Some(32), HOST, 0, (512, 32)),
        (
            100,
            None,
            Host {
                cpus: 64,
                all_cpus: 64,
                memory_mib: 1024 * 1024,
            },
            0,
            (256 * 1024 + 512, 16),
        ),
        (
            100,
            None,
            Host {
                cpus: 1,
                all_cpus: 1,
                memory_mib: 600,
            },
            0,
            (512, 1),
        ),
        // A limit beyond the share is given at boot.
        (1, None, HOST, GIB, (1168, 8)),
    ] {
        let size = VmSize::plan(&limits(memory, 0), &config(percent, max_vcpus), host);
        assert_eq!((size.max_mib, size.max_vcpus), want, "{percent} {host:?}");
        assert_eq!(size.pluggable_mib() % MEMORY_SECTION_MIB, 0);
    }
    // More vCPUs than max_vcpus are given if the quota needs them.
    let size = VmSize::plan(&limits(0, 600_000), &config(75, Some(4)), HOST);
    assert_eq!((size.vcpus, size.max_vcpus), (6, 6));
}

#[test]
fn most_pods_continue_from_the_same_size() {
    let config = config(75, None);
    let in_template =
        |limits: Limits, host: Host| VmSize::plan(&limits, &config, host).in_template(&config, host);
    let usual = in_template(Limits::default(), HOST).unwrap();
    assert_eq!((usual.boot_mib, usual.vcpus, usual.max_vcpus), (512, 1, 8));
    for (memory, quota, boot_mib) in [
        (1, 0, 256),
        (64 << 20, 50_000, 256),
        (250 << 20, 100_000, 384),
        (300 << 20, 100_000, 512),
        (GIB, 200_000, 512),
        (8 * GIB, 800_000, 512),
        // The CPU limit beyond the host's limits nothing.
        (0, 900_000, 512),
    ] {
        let limits = limits(memory, quota);
        let size = in_template(limits, HOST).unwrap();
        assert_eq!(
            (size.boot_mib, size.vcpus, size.max_vcpus),
            (boot_mib, 1, 8),
            "{memory} {quota}"
        );
        // The VM becomes as large as one that boots.
        let (booted, continued) = (plan(limits), PodSize::new(size, limits, HOST).target());
        assert!(
            continued.memory_mib >= booted.boot_mib && continued.memory_mib < booted.boot_mib + 128 + 128
        );
        assert_eq!(
            continued.vcpus,
            PodSize::new(booted, limits, HOST).target().vcpus,
            "{quota}"
        );
    }
    // Two of the host's CPUs, for which a VM that boots has two vCPUs.
    let few = Host { cpus: 2, ..HOST };
    let size = in_template(Limits::default(), few).unwrap();
    assert_eq!((size.boot_mib, size.max_vcpus), (usual.boot_mib, usual.max_vcpus));
    for limits in [Limits::default(), limits(0, 400_000)] {
        assert_eq!(PodSize::new(size, limits, few).target().vcpus, 2);
    }
}

#[test]
fn pods_with_more_vcpus_than_usual_have_one_further_kind() {
    let config = config(75, Some(2));
    for quota in [300_000, 800_000] {
        let size = VmSize::plan(&limits(0, quota), &config, HOST);
        assert_eq!(size.in_template(&config, HOST).unwrap().max_vcpus, MAX_VCPUS);
    }
}

#[test]
fn a_limit_beyond_the_share_of_the_host_is_plugged_in() {
    let config = config(1, None);
    let limits = limits(GIB, 0);
    let size = VmSize::plan(&limits, &config, HOST)
        .in_template(&config, HOST)
        .unwrap();
    assert_eq!((size.boot_mib, size.max_mib), (512, 512 + 6 * 128));
    assert_eq!(PodSize::new(size, limits, HOST).target().memory_mib, size.max_mib);
}

#[test]
fn a_pod_to_which_much_would_be_added_boots() {
    let host = Host {
        memory_mib: u32::MAX,
        ..HOST
    };
    let config = config(75, None);
    for (gib, is_in_template) in [(15, true), (17, false), (300, false)] {
        let size = VmSize::plan(&limits(gib << 30, 0), &config, host);
        assert_eq!(
            size.in_template(&config, host).is_some(),
            is_in_template,
            "{gib} GiB"
        );
    }
}

#[test]
fn sizes_are_steps_from_that_at_boot() {
    let size = VmSize {
        boot_mib: 513,
        max_mib: 513 + 3 * 128,
        vcpus: 1,
        most_vcpus: 1,
        max_vcpus: 1,
    };
    for (mib, want) in [
        (0, 513),
        (513, 513),
        (514, 641),
        (641, 641),
        (642, 769),
        (898, 897),
        (u32::MAX, 897),
    ] {
        assert_eq!(size.at_least(mib), want, "{mib}");
    }
}

#[test]
fn the_memory_of_a_vm_has_room_for_the_descriptions_of_its_pages() {
    for gib in [1_u64, 4, 64, 512] {
        let mib = u64::from(vm_memory_mib(gib << 30));
        let left = mib - mib / 64 - gib * 1024;
        assert!((120..=128).contains(&left), "{gib} GiB: {left} MiB are left");
    }
}

#[test]
fn a_pod_without_limits_may_use_all_cpus_and_grow() {
    let mut pod = pod(Limits::default());
    let free = Target {
        memory_mib: 512,
        ceiling_mib: 12 * 1024,
        vcpus: 8,
    };
    assert_eq!(pod.target(), free);
    pod.set("a", Limits::default()).unwrap();
    assert_eq!(pod.target(), free);
    // One with a limit beside it: what it may use is there at once.
    pod.set("b", limits(2 * GIB, 100_000)).unwrap();
    let memory_mib = 512 + 14 * 128;
    assert_eq!(pod.target(), Target { memory_mib, ..free });
    pod.remove("a");
    let limited = Target {
        memory_mib,
        ceiling_mib: memory_mib,
        vcpus: 1,
    };
    assert_eq!(pod.target(), limited);
}

#[test]
fn containers_add_up() {
    let mut pod = pod(limits(GIB, 200_000));
    let at_boot = Target {
        memory_mib: 1168,
        ceiling_mib: 1168,
        vcpus: 2,
    };
    assert_eq!(pod.target(), at_boot);
    // The pod's figure holds until the containers need more.
    for id in ["a", "b"] {
        pod.set(id, limits(GIB / 2, 100_000)).unwrap();
        assert_eq!(pod.target(), at_boot, "{id}");
    }
    pod.set("c", limits(GIB, 150_000)).unwrap();
    let target = pod.target();
    assert_eq!((target.memory_mib, target.vcpus), (1168 + 9 * 128, 4));
    assert_eq!(target.ceiling_mib, target.memory_mib);
}

#[test]
fn an_update_grows_and_shrinks() {
    let mut pod = pod(limits(GIB, 200_000));
    pod.set("a", limits(GIB, 200_000)).unwrap();
    let before = pod.target();
    let raise = json!({"memory": {"limit": 2 * GIB}, "cpu": {"quota": 400_000}});
    pod.forget_pod();
    pod.set("a", pod.limits("a").updated(&raise)).unwrap();
    let raised = pod.target();
    assert_eq!((raised.memory_mib, raised.vcpus), (1168 + 9 * 128, 4));
    assert!(raised.memory_mib >= vm_memory_mib(2 << 30));
    let lower = json!({"memory": {"limit": GIB / 4}, "cpu": {"quota": 200_000, "period": 400_000}});
    pod.set("a", pod.limits("a").updated(&lower)).unwrap();
    // Memory at boot stays.
    assert_eq!(
        (pod.target().memory_mib, pod.target().vcpus),
        (before.memory_mib, 1)
    );
    let lift = json!({"memory": {"limit": -1}, "cpu": {"quota": -1}});
    pod.set("a", pod.limits("a").updated(&lift)).unwrap();
    assert_eq!(
        (pod.target().ceiling_mib, pod.target().vcpus),
        (pod.vm().max_mib, 8)
    );
}

#[test]
fn an_update_leaves_what_it_does_not_name() {
    let limits = Limits::of(&json!({"memory": {"limit": 5}, "cpu": {"quota": 150, "period": 100}}));
    assert_eq!((limits.memory(), limits.millicpus()), (Some(5), Some(1500)));
    for nothing in [
        json!({}),
        json!({"memory": {"limit": 0}, "cpu": {"quota": 0, "period": 0, "shares": 7}}),
    ] {
        assert_eq!(limits.updated(&nothing), limits, "{nothing}");
    }
    let period = limits.updated(&json!({"cpu": {"period": 300}}));
    assert_eq!(period.millicpus(), Some(500));
}

#[test]
fn what_the_vm_cannot_have_is_refused_with_the_reason() {
    let mut pod = pod(Limits::default());
    let before = pod.clone();
    let error = pod.set("a", limits(13 * GIB, 0)).unwrap_err().to_string();
    for word in ["memory.limit", "13958643712", "12288 MiB", "max_memory_percent"] {
        assert!(error.contains(word), "{error}");
    }
    // The host has 8 CPUs and so has the VM: 9 are no limit.
    pod.set("b", limits(0, 900_000)).unwrap();
    assert_eq!(pod.target().vcpus, 8);
    pod.remove("b");
    assert_eq!(pod, before);
    let vm = VmSize::plan(&Limits::default(), &config(75, Some(4)), HOST);
    let mut small = PodSize::new(vm, Limits::default(), HOST);
    let error = small.set_pod(limits(0, 500_000)).unwrap_err().to_string();
    for word in ["cpu.quota", "5 CPUs", "at most 4", "max_vcpus"] {
        assert!(error.contains(word), "{error}");
    }
}
