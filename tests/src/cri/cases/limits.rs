//! Limits and figures: what a container is given, and what containerd tells of its use.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::PLAIN;
use crate::cri::node::Node;
use crate::cri::pod::Container;
use crate::cri::{Case, calls, container, exec};
use crate::parity::Outcome;

const MIB: u64 = 1 << 20;

pub const CASES: &[Case] = &[
    container(
        "limits: memory, CPU, shares, as the container sees them",
        &PLAIN,
        || {
            resources(
                json!({"memory_limit_in_bytes": 64 << 20, "cpu_quota": 50_000, "cpu_period": 100_000, "cpu_shares": 512}),
            )
        },
        CGROUP_FILES,
    )
    .allow_difference(
        "Nacre converts shares to cpu.weight as runc 1.4 does",
        "59",
    ),
    container(
        "limits: unified",
        &PLAIN,
        || {
            resources(
                json!({"memory_limit_in_bytes": 64 << 20, "unified": {"memory.high": "50331648", "pids.max": "77"}}),
            )
        },
        "cd /sys/fs/cgroup; cat memory.max memory.high pids.max",
    ),
    container(
        "limits: CPUs",
        &PLAIN,
        || resources(json!({"cpuset_cpus": "0"})),
        "cat /sys/fs/cgroup/cpuset.cpus; grep Cpus_allowed_list /proc/self/status",
    )
    .allow_difference(
        "CPU numbers are the host's: the VM runs on them, and the container has all CPUs of the VM",
        "Cpus_allowed_list",
    ),
    exec("limits: none", &PLAIN, CGROUP_FILES),
    calls("limits: a pod without one may use 600 MiB", much_memory),
    calls("limits: updated while the container runs", updated)
        .allow_difference("Nacre converts shares to cpu.weight as runc 1.4 does", "35"),
    calls("limits: the status tells them", told).since("1.7"),
    calls("figures: of a container", of_container),
    calls("figures: grow with the work", grow),
    calls("figures: of a pod", of_pod).since("1.7"),
];

const CGROUP_FILES: &str = "cd /sys/fs/cgroup; cat memory.max cpu.max cpu.weight; cat memory.swap.max";

fn resources(change: Value) -> Value {
    json!({"linux": {"resources": change}})
}

fn much_memory(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let outcome = pod.run(
        "dd if=/dev/zero of=/dev/null bs=600M count=1 2>&1 | grep records",
        Value::Null,
    )?;
    pod.remove()?;
    Ok(outcome)
}

fn updated(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let first = json!({"memory_limit_in_bytes": 64 << 20, "cpu_quota": 50_000, "cpu_period": 100_000});
    let container = pod.start("exec sleep 1000000", resources(first))?;
    let mut seen = container.output(CGROUP_FILES)?;
    for change in [
        json!({"memory_limit_in_bytes": 256 << 20, "memory_swap_limit_in_bytes": 256 << 20, "cpu_quota": 200_000, "cpu_period": 100_000}),
        json!({"cpu_shares": 256}),
        json!({"memory_limit_in_bytes": 96 << 20, "memory_swap_limit_in_bytes": 96 << 20, "cpu_quota": 25_000, "cpu_period": 50_000}),
    ] {
        let request = json!({"container_id": container.id, "linux": change});
        node.call("UpdateContainerResources", request)?;
        seen.push_str(&container.output(CGROUP_FILES)?);
    }
    pod.remove()?;
    Ok(Outcome::text(seen))
}

fn told(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let first = json!({"memory_limit_in_bytes": 64 << 20, "cpu_quota": 50_000, "cpu_period": 100_000});
    let container = pod.start("exec sleep 1000000", resources(first))?;
    let mut seen = vec![container.status()?["resources"].clone()];
    let change = json!({"memory_limit_in_bytes": 96 << 20, "memory_swap_limit_in_bytes": 96 << 20});
    node.call(
        "UpdateContainerResources",
        json!({"container_id": container.id, "linux": change}),
    )?;
    seen.push(container.status()?["resources"].clone());
    pod.remove()?;
    Ok(Outcome::text(json!(seen).to_string()))
}

/// A figure that must be there.
fn figure(stats: &Value, pointer: &str) -> Result<u64> {
    let found = stats.pointer(pointer).and_then(Value::as_u64);
    found.with_context(|| format!("no {pointer} in {stats}"))
}

fn stats(node: &Node, container: &Container<'_>) -> Result<Value> {
    Ok(node.call("ContainerStats", container.request())?["stats"].take())
}

fn of_container(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let container = pod.start("echo up; exec sleep 1000000", Value::Null)?;
    container.prints("up")?;
    let stats = stats(node, &container)?;
    let mut seen = Vec::new();
    for pointer in [
        "/cpu/usage_core_nano_seconds/value",
        "/memory/working_set_bytes/value",
        "/cpu/timestamp",
        "/memory/timestamp",
    ] {
        seen.push(format!(
            "{pointer} is {}",
            if figure(&stats, pointer)? > 0 {
                "positive"
            } else {
                "0"
            }
        ));
    }
    ensure!(stats["attributes"]["id"] == container.id.as_str(), "{stats}");
    let filter = json!({"filter": {"pod_sandbox_id": pod.id}});
    let listed = node.call("ListContainerStats", filter)?;
    seen.push(format!(
        "{} listed",
        listed["stats"].as_array().map_or(0, Vec::len)
    ));
    pod.remove()?;
    Ok(Outcome::text(seen.join("\n")))
}

fn grow(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let before = stats(node, &container)?;
    // 40 MiB that stay, and the time that the shell tells.
    container.output("head -c 41943040 /dev/zero >/dev/shm/a")?;
    let times =
        container.output("sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; times' | head -n 1")?;
    let after = stats(node, &container)?;
    let grown = |pointer: &str| -> Result<u64> {
        Ok(figure(&after, pointer)?.saturating_sub(figure(&before, pointer)?))
    };
    let memory = grown("/memory/working_set_bytes/value")?;
    ensure!(
        (38 * MIB..60 * MIB).contains(&memory),
        "40 MiB written, {memory} bytes more"
    );
    let cpu = grown("/cpu/usage_core_nano_seconds/value")?;
    ensure!(cpu > 50_000_000, "{cpu} ns after work of {times}");
    pod.remove()?;
    Ok(Outcome::text("as expected"))
}

fn of_pod(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let container = pod.start("echo up; exec sleep 1000000", Value::Null)?;
    container.prints("up")?;
    container.output("ping -c 3 -A 10.88.0.1 >/dev/null")?;
    let stats = node.call("PodSandboxStats", pod.request())?["stats"].take();
    let linux = &stats["linux"];
    let mut seen = Vec::new();
    for pointer in [
        "/cpu/usage_core_nano_seconds/value",
        "/memory/working_set_bytes/value",
        "/network/default_interface/rx_bytes/value",
        "/network/default_interface/tx_bytes/value",
        "/process/process_count/value",
    ] {
        seen.push(format!(
            "{pointer} is {}",
            if figure(linux, pointer)? > 0 {
                "positive"
            } else {
                "0"
            }
        ));
    }
    seen.push(linux["network"]["default_interface"]["name"].to_string());
    seen.push(format!(
        "{} containers",
        linux["containers"].as_array().map_or(0, Vec::len)
    ));
    let listed = node.call("ListPodSandboxStats", json!({"filter": {"id": pod.id}}))?;
    seen.push(format!(
        "{} listed",
        listed["stats"].as_array().map_or(0, Vec::len)
    ));
    pod.remove()?;
    Ok(Outcome::text(seen.join("\n")))
}
