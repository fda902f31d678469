//! Limits and figures: what a container is given, and what containerd tells of its use.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::PLAIN;
use super::network::{time_from_pod, time_to_pod};
use crate::containerd::Runtime;
use crate::containerd::ctr::{DEADLINE, output};
use crate::cri::node::Node;
use crate::cri::pod::{Container, Pod};
use crate::cri::{Case, calls, container, exec};
use crate::installation::Config;
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
    calls("limits: resized up and down under load, and all figures agree", resized).long(),
    calls("figures: of a container", of_container),
    calls("figures: grow with the work", grow),
    calls("figures: of a writable layer", writable_layer),
    calls("figures: of a pod", of_pod).since("1.7"),
    calls("figures: of a pod's network", of_network).since("1.7"),
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

/// Checks 16 MiB in memory again and again, so that pages that move while memory is unplugged must stay whole.
const CHECK_MEMORY: &str = "head -c 16777216 /dev/urandom >/dev/shm/data; md5sum /dev/shm/data >/tmp/sum
    n=0; while md5sum -c -s /tmp/sum; do n=$((n + 1)); echo round $n; done; echo changed";

fn resized(node: &Node) -> Result<Outcome> {
    let _config = Config::with("max_vcpus = 4\n")?;
    let pod = node.pod(Value::Null)?;
    let container = pod.start(CHECK_MEMORY, resources(size(2, 1024)))?;
    container.prints("round 1")?;
    let mut seen = String::new();
    let mut at_boot = None;
    for (cpus, mib) in [(2, 1024), (4, 2048), (2, 1024)] {
        let request = json!({"container_id": container.id, "linux": size(cpus, mib)});
        node.call("UpdateContainerResources", request)?;
        seen.push_str(&container.output("cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max")?);
        if node.runtime == Runtime::Nacre {
            let guest = guest_and_host_agree(&pod, &container, cpus, mib, at_boot)?;
            at_boot.get_or_insert(guest);
        }
        cri_agrees(node, &container, cpus, mib)?;
        let rounds = container.lines()?.len();
        container.prints(&format!("round {}", rounds + 1))?;
    }
    ensure!(container.lines()?.iter().all(|line| line.text != "changed"));
    pod.remove()?;
    Ok(Outcome::text(seen))
}

/// A container's limits as the resources of a request.
fn size(cpus: u64, mib: u64) -> Value {
    let memory = mib * MIB;
    json!({
        "memory_limit_in_bytes": memory, "memory_swap_limit_in_bytes": memory,
        "cpu_quota": cpus * 100_000, "cpu_period": 100_000,
    })
}

/// The guest has `cpus` vCPUs and the memory for a limit of `mib`, as `nacre ps` says too. What it had `at_boot`, MiB,
/// it has again after it was shrunk. Returns what it has.
fn guest_and_host_agree(
    pod: &Pod<'_>,
    container: &Container<'_>,
    cpus: u64,
    mib: u64,
    at_boot: Option<u64>,
) -> Result<u64> {
    let until = Instant::now() + DEADLINE;
    let most = at_boot.filter(|_| mib == 1024).unwrap_or(u64::MAX);
    // Memory is given back later: the guest's kernel moves pages first.
    let guest = loop {
        let text = container.output("nproc; awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo")?;
        let numbers: Vec<u64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
        let [vcpus, memory] = numbers[..] else {
            bail!("the guest prints {text:?}");
        };
        ensure!(
            vcpus == cpus && memory >= mib,
            "{cpus} CPUs, {mib} MiB: {numbers:?}"
        );
        if memory <= most {
            break memory;
        }
        ensure!(Instant::now() < until, "memory was not given back: {memory} MiB");
    };
    let mut ps = Command::new("nacre");
    ps.args(["ps", "--json"]);
    let pods: Vec<Value> = serde_json::from_str(&output(ps)?.success()?)?;
    let listed = pods.iter().find(|listed| listed["id"] == pod.id.as_str());
    let listed = &listed.context("nacre ps does not list the pod")?["size"];
    ensure!(listed["vcpus"] == cpus, "{cpus} vCPUs: {listed}");
    // The guest's kernel counts neither itself nor the descriptions of pages.
    let vm = listed["memory_mib"].as_u64().context("no memory_mib")?;
    ensure!(
        (guest..guest + guest / 32 + 64).contains(&vm),
        "{guest} MiB: {listed}"
    );
    Ok(guest)
}

/// containerd's figures of the limits, as far as its version has them.
fn cri_agrees(node: &Node, container: &Container<'_>, cpus: u64, mib: u64) -> Result<()> {
    let status = container.status()?;
    if let Some(limits) = status.pointer("/resources/linux") {
        for (name, value) in [
            ("memory_limit_in_bytes", mib * MIB),
            ("cpu_quota", cpus * 100_000),
        ] {
            ensure!(limits[name] == value, "{name} must be {value}: {limits}");
        }
    }
    let stats = stats(node, container)?;
    ensure!(
        figure(&stats, "/cpu/usage_core_nano_seconds/value")? > 0,
        "{stats}"
    );
    if let Some(available) = stats
        .pointer("/memory/available_bytes/value")
        .and_then(Value::as_u64)
    {
        let used = figure(&stats, "/memory/working_set_bytes/value")?;
        ensure!(available + used == mib * MIB, "{mib} MiB: {stats}");
    }
    Ok(())
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
    // Some megabytes that the container's start has taken may be given back meanwhile.
    ensure!(
        (32 * MIB..60 * MIB).contains(&memory),
        "40 MiB written, {memory} bytes more"
    );
    let cpu = grown("/cpu/usage_core_nano_seconds/value")?;
    ensure!(cpu > 50_000_000, "{cpu} ns after work of {times}");
    pod.remove()?;
    Ok(Outcome::text("as expected"))
}

/// A writable layer's bytes and inodes. containerd counts them every 10 s; a container that it has not counted yet has
/// none.
fn layer(node: &Node, container: &Container<'_>) -> Result<[u64; 2]> {
    let stats = stats(node, container)?;
    let of = |pointer: &str| stats.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    Ok([
        of("/writable_layer/used_bytes/value"),
        of("/writable_layer/inodes_used/value"),
    ])
}

fn writable_layer(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    container.output(
        "head -c 3145728 /dev/urandom >/large; mkdir /many; cd /many; for i in $(seq 100); do : >$i; done; sync",
    )?;
    let until = Instant::now() + DEADLINE;
    let [bytes, inodes] = loop {
        match layer(node, &container)? {
            [bytes, inodes] if inodes > 100 => break [bytes, inodes],
            counted => ensure!(
                Instant::now() < until,
                "102 files written, counted are {counted:?}"
            ),
        }
        container.output("sleep 1")?;
    };
    node.figure(&format!("writable layer: {bytes} bytes, {inodes} inodes"));
    ensure!(
        (3 * MIB..4 * MIB).contains(&bytes),
        "3 MiB written, {bytes} bytes counted"
    );
    pod.remove()?;
    Ok(Outcome::text(format!("{inodes} inodes")))
}

/// Bytes that a pod's first interface has received and sent.
fn transferred(node: &Node, pod: &Pod<'_>) -> Result<[u64; 2]> {
    let stats = node.call("PodSandboxStats", pod.request())?;
    let of = |name: &str| {
        figure(
            &stats,
            &format!("/stats/linux/network/default_interface/{name}/value"),
        )
    };
    Ok([of("rx_bytes")?, of("tx_bytes")?])
}

/// What is sent to and from the pod is counted, each byte once: beside it are headers and acknowledgements.
fn of_network(node: &Node) -> Result<Outcome> {
    const TO_POD: u64 = 2_000_000;
    const FROM_POD: u64 = 1_000_000;
    let pod = node.pod(Value::Null)?;
    let before = transferred(node, &pod)?;
    time_to_pod(&pod, usize::try_from(TO_POD)?)?;
    time_from_pod(&pod, usize::try_from(FROM_POD)?)?;
    let after = transferred(node, &pod)?;
    for (direction, sent, before, after) in [
        ("received", TO_POD, before[0], after[0]),
        ("sent", FROM_POD, before[1], after[1]),
    ] {
        let counted = after.saturating_sub(before);
        node.figure(&format!("{direction} {sent} bytes, counted {counted}"));
        ensure!(
            (sent..sent + sent / 4).contains(&counted),
            "{direction} {sent} bytes, counted {counted}"
        );
    }
    pod.remove()?;
    Ok(Outcome::text("both are counted"))
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
