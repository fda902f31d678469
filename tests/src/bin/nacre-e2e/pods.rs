//! Several containers of one pod, as CRI makes them: a sandbox, and containers whose annotations name it.
//! They share the sandbox's shim, VM and namespaces, and end independently of it.

use anyhow::{Context as _, Result, ensure};
use nacre_tests::containerd::bundle::Bundle;
use nacre_tests::containerd::ctr::{Run, ctr, fresh_id, remove_detached};
use nacre_tests::leaks::nacre_processes;
use serde_json::{Value, json};

use crate::{Test, core};

pub const TESTS: &[Test] = &[core(
    "containers of a pod share its VM and end on their own",
    containers_of_a_pod,
)];

/// The namespaces that CRI shares between the containers of a pod.
const SHARED: [(&str, &str); 3] = [("network", "net"), ("ipc", "ipc"), ("uts", "uts")];

/// The annotations by which CRI names a container's sandbox.
fn annotate(spec: &mut Value, kind: &str, sandbox: &str) {
    spec["annotations"] = json!({
        "io.kubernetes.cri.container-type": kind,
        "io.kubernetes.cri.sandbox-id": sandbox,
    });
}

/// A container that joins the sandbox whose task has the pid `pid`.
fn member(sandbox: &str, pid: u32, script: &str) -> Result<Bundle> {
    Bundle::new(&["sh", "-c", script], |spec| {
        annotate(spec, "container", sandbox);
        for namespace in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
            let shared = SHARED.iter().find(|(kind, _)| namespace["type"] == *kind);
            if let Some((_, name)) = shared {
                namespace["path"] = json!(format!("/proc/{pid}/ns/{name}"));
            }
        }
    })
}

/// The pid of task `id`, as containerd lists it.
fn pid(id: &str) -> Result<u32> {
    let listed = ctr(["task", "list"])?.success()?;
    let line = listed.lines().find(|line| line.starts_with(id));
    let line = line.with_context(|| format!("{id} is not listed: {listed}"))?;
    Ok(line
        .split_whitespace()
        .nth(1)
        .context("no pid is listed")?
        .parse()?)
}

fn exec(id: &str, exec_id: &str, script: &str) -> Result<String> {
    let output = ctr(["task", "exec", "--exec-id", exec_id, id, "sh", "-c", script])?.success()?;
    Ok(output.trim().to_owned())
}

fn containers_of_a_pod() -> Result<()> {
    let sandbox = fresh_id("sandbox");
    let bundle = Bundle::new(&["sleep", "1000000"], |spec| {
        annotate(spec, "sandbox", &sandbox);
        spec["hostname"] = json!("the-pod");
    })?;
    Run {
        config: Some(&bundle.config()?),
        ..Run::default()
    }
    .detach(&sandbox)?;
    let seen = members(&sandbox);
    remove_detached(&sandbox)?;
    seen
}

/// Runs two containers in the pod: the first exits by itself, the second is killed. The sandbox runs on.
fn members(sandbox: &str) -> Result<()> {
    let pid = pid(sandbox)?;
    let look = "echo $$ > /own; cat /proc/sys/kernel/random/boot_id; hostname; read line; echo $line; exit 7";
    let (first, second) = (member(sandbox, pid, look)?, member(sandbox, pid, look)?);
    let mut running = Vec::new();
    for (word, bundle) in [("first", &first), ("second", &second)] {
        let run = Run {
            config: Some(&bundle.config()?),
            ..Run::default()
        };
        running.push(run.spawn(&fresh_id(word))?);
    }
    let boot = exec(sandbox, "boot", "cat /proc/sys/kernel/random/boot_id")?;
    for container in &mut running {
        let (theirs, host) = (container.line()?, container.line()?);
        ensure!(
            theirs == boot,
            "boot id {theirs} in a container, {boot} in its sandbox"
        );
        ensure!(host == "the-pod", "host name {host} in a container of the pod");
    }
    let processes = nacre_processes()?;
    ensure!(
        processes.len() == 2,
        "expected one shim and one VMM for the pod, got {processes:?}"
    );
    for bundle in [&first, &second] {
        let own = std::fs::read_to_string(bundle.root().join("own")).context("the file in a rootfs")?;
        ensure!(own == "1\n", "pid {own:?} in a PID namespace of its own");
    }
    let [mut first, second] =
        <[_; 2]>::try_from(running).map_err(|_| anyhow::anyhow!("expected two containers"))?;
    first.feed(b"bye\n".to_vec())?;
    let output = first.wait_with_output()?;
    ensure!(
        output.code == Some(7) && output.text() == "bye\n",
        "the first container: {output:?}"
    );
    let again = exec(sandbox, "again", "cat /proc/sys/kernel/random/boot_id")?;
    ensure!(again == boot, "the sandbox's VM was started anew");
    second.kill("SIGKILL")?;
    let output = second.wait_with_output()?;
    ensure!(output.code == Some(137), "the second container: {output:?}");
    ensure!(
        exec(sandbox, "last", "echo up")? == "up",
        "the sandbox does not run any more"
    );
    Ok(())
}
