//! Tests of what an operator sees on a host with a running pod: `nacre doctor`, `ps` and `inspect`, and the
//! confinement of the VMM.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::ctr::{Run, ctr, fresh_id, output};
use serde_json::Value;

use crate::{Test, core, test};

pub const TESTS: &[Test] = &[
    core("nacre doctor reports no failure", doctor),
    test("nacre ps and inspect show a running pod", shown),
    test("nacre overhead measures a running pod", overhead),
    core("every thread of the VMM is jailed", jailed),
];

/// The file server's capabilities: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP.
const FILE_SERVER: &str = "00000000880000db";
/// What the thread that syncs files for it has: DAC_OVERRIDE.
const FILE_SYNC: &str = "0000000000000002";
/// No capabilities.
const NONE: &str = "0000000000000000";

pub fn nacre(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("nacre");
    command.args(arguments);
    output(command)?.success()
}

fn doctor() -> Result<()> {
    let address = crate::setup::containerd_address()?;
    let checks = nacre(&["doctor", "--json", "--address", &address.to_string_lossy()])?;
    let checks: Vec<Value> = serde_json::from_str(&checks)?;
    let failed: Vec<&Value> = checks
        .iter()
        .filter(|check| check["status"] == "failed")
        .collect();
    ensure!(failed.is_empty(), "{failed:#?}");
    let probed = checks
        .iter()
        .any(|check| check["name"] == "probe boot" && check["status"] == "ok");
    ensure!(probed, "no successful probe boot in {checks:#?}");
    Ok(())
}

/// Runs `check` with the id and the `nacre ps` entry of a detached container, then removes the container.
fn with_pod(word: &str, check: impl FnOnce(&str, &Value) -> Result<()>) -> Result<()> {
    let id = fresh_id(word);
    let run = Run {
        command: &["sleep", "1000"],
        ..Run::default()
    };
    run.detach(&id)?;
    let checked = pod(&id).and_then(|pod| check(&id, &pod));
    ctr(["task", "delete", "--force", &id])?;
    ctr(["containers", "delete", &id])?.success()?;
    checked
}

/// The entry of pod `id` in the output of `nacre ps`.
pub fn pod(id: &str) -> Result<Value> {
    let pods: Vec<Value> = serde_json::from_str(&nacre(&["ps", "--json"])?)?;
    pods.into_iter()
        .find(|pod| pod["id"] == id)
        .with_context(|| format!("nacre ps does not list {id}"))
}

fn shown() -> Result<()> {
    with_pod("shown", |id, pod| {
        ensure!(
            pod["state"] == "running" && pod["namespace"] == "default",
            "{pod:#}"
        );
        ensure!(
            pod["memory_bytes"].as_u64().is_none_or(|bytes| bytes > 1 << 20),
            "{pod:#}"
        );
        for process in ["vmm", "shim"] {
            for kind in ["private_bytes", "shared_bytes"] {
                let bytes = pod["processes"][process][kind].as_u64();
                ensure!(
                    bytes.is_some_and(|bytes| bytes > 100 << 10),
                    "{process}, {kind}: {pod:#}"
                );
            }
        }
        let out = nacre(&["inspect", id.get(..id.len() - 1).context("the id is empty")?])?;
        for text in [
            "state",
            "running",
            "agent ready",
            "guest kernel: ",
            " of its own, ",
            "-nacre",
            "VM exits",
        ] {
            ensure!(out.contains(text), "nacre inspect does not print {text:?}: {out}");
        }
        Ok(())
    })
}

fn overhead() -> Result<()> {
    with_pod("overhead", |id, _| {
        let measured: Value = serde_json::from_str(&nacre(&["overhead", "--seconds", "1", "--json"])?)?;
        let pods = measured["pods"].as_array().context("no pods")?;
        let pod = pods
            .iter()
            .find(|pod| pod["id"] == id)
            .context("the pod is missing")?;
        let number = |key: &str| pod[key].as_u64().with_context(|| format!("no {key} in {pod}"));
        let (vm, shim) = (number("vm_bytes")?, number("shim_bytes")?);
        let containers = number("containers_bytes")?;
        // The guest of a template has most of its pages from there.
        ensure!(vm > 2 << 20 && shim > 1 << 18 && containers > 0, "{measured:#}");
        ensure!(
            number("overhead_bytes")? == vm + shim - containers,
            "{measured:#}"
        );
        let text = nacre(&["overhead", "--seconds", "1"])?;
        for part in ["kind: RuntimeClass", "podFixed:", "Mi\n", "cpu: "] {
            ensure!(
                text.contains(part),
                "nacre overhead does not print {part:?}: {text}"
            );
        }
        println!("        {}", measured["pod_fixed"]);
        Ok(())
    })
}

fn jailed() -> Result<()> {
    with_pod("jailed", |id, pod| {
        let pid = pod["vmm_pid"].as_u64().context("nacre ps has no vmm_pid")?;
        let process = Path::new("/proc").join(pid.to_string());
        for kind in ["mnt", "net", "ipc", "uts"] {
            let theirs = fs::read_link(process.join("ns").join(kind))?;
            let ours = fs::read_link(Path::new("/proc/self/ns").join(kind))?;
            ensure!(theirs != ours, "the VMM is in the host's {kind} namespace");
        }
        let inside: Vec<String> = fs::read_dir(process.join("root"))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        // A container whose root file system is a disk shares no directory.
        let on_disk = std::env::var_os("CONTAINERD_SNAPSHOTTER").is_some();
        ensure!(
            inside == [id] || on_disk && inside.is_empty(),
            "the VMM's root directory contains {inside:?}"
        );
        let mut file_servers = 0;
        for task in fs::read_dir(process.join("task"))? {
            let task = task?.path();
            let name = fs::read_to_string(task.join("comm"))?;
            let status = fs::read_to_string(task.join("status"))?;
            let field = |key: &str| -> Result<&str> {
                let line = status.lines().find_map(|line| line.strip_prefix(key));
                Ok(line
                    .with_context(|| format!("status has no {key}"))?
                    .trim_start_matches(':')
                    .trim())
            };
            ensure!(
                field("Seccomp")? == "2",
                "thread {name:?} has no seccomp filter: {status}"
            );
            ensure!(
                field("NoNewPrivs")? == "1",
                "thread {name:?} does not have no_new_privs set: {status}"
            );
            let (effective, permitted) = (field("CapEff")?, field("CapPrm")?);
            let is_file_server = permitted == FILE_SERVER;
            let allowed = if name.trim() == "fs-sync" { FILE_SYNC } else { NONE };
            file_servers += usize::from(is_file_server);
            ensure!(
                is_file_server || (permitted == allowed && effective == allowed),
                "thread {name:?}: {status}"
            );
            ensure!(field("CapBnd")? == FILE_SERVER, "thread {name:?}: {status}");
        }
        ensure!(
            file_servers == 1,
            "{file_servers} threads have the file server's capabilities"
        );
        Ok(())
    })
}
