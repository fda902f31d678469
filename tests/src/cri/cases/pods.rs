//! The life of a pod, as its owner sees it.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use nacre_protocol::state;
use serde_json::{Value, json};

use super::without_numbers;
use crate::cri::node::{NAMESPACE, Node};
use crate::cri::pod::Pod;
use crate::cri::{Case, calls};
use crate::leaks::{nacre_processes, send_sigkill};
use crate::parity::Outcome;

pub const CASES: &[Case] = &[
    calls("pod: status from its start to its removal", status),
    calls("pod: stopped and removed twice", twice),
    calls("pod: removed without being stopped", removed_running),
    calls("pod: listed by id, state and label", listed),
    calls("pod: a second one of the same name", same_name),
    calls("pod: its end is that of its containers", end_of_containers),
    calls("pod: without DNS configuration", no_dns),
    calls("pod: two side by side are apart", apart),
    calls("pod: it lives on when containerd restarts", containerd_restarts),
    calls("pod: its VMM is killed, and its neighbour lives", vmm_killed).only_nacre(),
    calls(
        "pod: its cgroup has the shim and the VMM, and goes with them",
        cgroup,
    )
    .only_nacre(),
    calls("pod: at the limit of its cgroup the VMM is killed", host_limit).only_nacre(),
];

fn status(node: &Node) -> Result<Outcome> {
    let pod = node.pod(json!({"labels": {"app": "web"}, "annotations": {"note": "a b"}}))?;
    let mut status = pod.status()?;
    ensure!(status["runtime_handler"] == node.handler.as_str(), "{status}");
    ensure!(status["created_at"].as_i64() > Some(0), "{status}");
    ensure!(
        status["metadata"]
            == json!({
                "name": pod.config["metadata"]["name"],
                "uid": pod.config["metadata"]["uid"],
                "namespace": NAMESPACE,
                "attempt": 0,
            }),
        "{status}"
    );
    let mut seen = vec![json!([status["state"], status["labels"], status["annotations"]])];
    let [first, second] = pod.addresses()?;
    ensure!(
        first.starts_with("10.88.") && second.starts_with("fd88::"),
        "{first} {second}"
    );
    pod.stop()?;
    status = pod.status()?;
    seen.push(json!([status["state"], status["network"]["ip"]]));
    pod.remove()?;
    let gone = node.refused("PodSandboxStatus", pod.request())?;
    seen.push(json!([gone.code, without_numbers(&gone.message)]));
    Ok(Outcome::text(lines(&seen)))
}

fn twice(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    for method in [
        "StopPodSandbox",
        "StopPodSandbox",
        "RemovePodSandbox",
        "RemovePodSandbox",
    ] {
        node.call(method, pod.request())?;
    }
    pod.is_removed();
    Ok(Outcome::text("four calls succeed"))
}

fn removed_running(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    pod.start("exec sleep 1000000", Value::Null)?;
    node.call("RemovePodSandbox", pod.request())?;
    pod.is_removed();
    let left = node.call("ListContainers", json!({"filter": {"pod_sandbox_id": pod.id}}))?;
    Ok(Outcome::text(left.to_string()))
}

fn listed(node: &Node) -> Result<Outcome> {
    let label = json!({"suite": "listed"});
    let (one, two) = (
        node.pod(json!({"labels": label}))?,
        node.pod(json!({"labels": label}))?,
    );
    two.stop()?;
    let count = |filter: Value| -> Result<usize> {
        let answer = node.call("ListPodSandbox", json!({"filter": filter}))?;
        Ok(answer["items"].as_array().context("no list")?.len())
    };
    let seen = [
        count(json!({"id": one.id}))?,
        count(json!({"id": one.id.get(..12)}))?,
        count(json!({"label_selector": label}))?,
        count(json!({"label_selector": label, "state": {"state": "SANDBOX_READY"}}))?,
        count(json!({"label_selector": label, "state": {"state": "SANDBOX_NOTREADY"}}))?,
        count(json!({"label_selector": {"suite": "other"}}))?,
    ];
    one.remove()?;
    two.remove()?;
    Ok(Outcome::text(format!("{seen:?}")))
}

fn same_name(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let request = json!({"config": pod.config, "runtime_handler": node.handler});
    let refused = node.refused("RunPodSandbox", request)?;
    ensure!(pod.status()?["state"] == "SANDBOX_READY");
    // A next attempt has another name.
    let mut config = pod.config.clone();
    config["metadata"]["attempt"] = json!(1);
    let next = node.pod_of(config)?;
    next.remove()?;
    pod.remove()?;
    Ok(Outcome::text(without_numbers(&refused.message)))
}

fn end_of_containers(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let running = pod.start("exec sleep 1000000", Value::Null)?;
    let created = pod.create("true", Value::Null)?;
    pod.stop()?;
    let mut seen = Vec::new();
    for container in [&running, &created] {
        let status = container.status()?;
        seen.push(json!([status["state"], status["exit_code"]]));
    }
    let refused = node.refused("StartContainer", created.request())?;
    seen.push(json!(refused.code));
    pod.remove()?;
    Ok(Outcome::text(lines(&seen)))
}

fn no_dns(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let outcome = pod.run("grep -c . /etc/resolv.conf", Value::Null)?;
    pod.remove()?;
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let count = host.lines().filter(|line| !line.is_empty()).count();
    ensure!(
        outcome.stdout.starts_with(&format!("{count}\n")),
        "the host's has {count} lines: {outcome}"
    );
    Ok(outcome)
}

fn apart(node: &Node) -> Result<Outcome> {
    let one = node.pod(json!({"hostname": "one"}))?;
    let two = node.pod(json!({"hostname": "two"}))?;
    let mut seen = String::new();
    let script = "touch /dev/shm/$(hostname) /tmp/$(hostname); ls /dev/shm /tmp";
    for pod in [&one, &two] {
        seen.push_str(&pod.run(script, Value::Null)?.stdout);
    }
    ensure!(one.addresses()? != two.addresses()?);
    two.remove()?;
    one.remove()?;
    Ok(Outcome::text(seen))
}

fn containerd_restarts(node: &Node) -> Result<Outcome> {
    let pod = node.pod(json!({"labels": {"app": "web"}}))?;
    let script = "trap 'exit 3' TERM; echo up; read line; while :; do sleep 0.1; done";
    let running = pod.start(script, Value::Null)?;
    running.prints("up")?;
    let ended = pod.start("exit 5", Value::Null)?;
    ended.ended()?;
    let addresses = pod.addresses()?;
    node.restart_containerd()?;
    let status = pod.status()?;
    ensure!(pod.addresses()? == addresses, "{status}");
    let mut seen = vec![json!([status["state"], status["labels"]])];
    for container in [&running, &ended] {
        let status = container.status()?;
        seen.push(json!([status["state"], status["exit_code"]]));
    }
    seen.push(json!(running.output("echo executed")?));
    seen.push(json!(pod.run("echo next", Value::Null)?.stdout));
    running.stop(60)?;
    seen.push(running.status()?["exit_code"].clone());
    pod.stop()?;
    seen.push(pod.status()?["state"].clone());
    pod.remove()?;
    Ok(Outcome::text(lines(&seen)))
}

fn vmm_killed(node: &Node) -> Result<Outcome> {
    let neighbour = node.pod(Value::Null)?;
    let others = nacre_processes()?;
    let pod = node.pod(Value::Null)?;
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let vmm = nacre_processes()?
        .into_iter()
        .find(|process| process.1.starts_with("nacre-vmm") && !others.contains(process));
    let (pid, _) = vmm.context("the pod has no VMM")?;
    send_sigkill(pid)?;
    let ended = container.ended()?;
    ensure!(ended.code == Some(137), "{ended}");
    let next = neighbour.run("echo lives", Value::Null)?;
    ensure!(next.stdout == "lives\n", "{next}");
    pod.remove()?;
    neighbour.remove()?;
    Ok(Outcome::text("the container ends with 137"))
}

/// What the shim has recorded of the pod.
fn recorded(pod: &Pod<'_>) -> Result<state::Pod> {
    let file = state::pod_dir(&key(pod)?).join(state::POD_FILE);
    let text = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

fn key(pod: &Pod<'_>) -> Result<String> {
    let address = std::env::var("CONTAINERD_ADDRESS").context("CONTAINERD_ADDRESS")?;
    Ok(state::pod_key(&address, "k8s.io", &pod.id))
}

/// The cgroup is used as soon as the guest boots; each pod of the run makes and removes its own.
fn cgroup(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let state::Pod {
        shim_pid,
        vmm_pid: Some(vmm_pid),
        cgroup: Some(cgroup),
        ..
    } = recorded(&pod)?
    else {
        bail!("no VMM or cgroup is recorded")
    };
    let pids = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    let mut pids: Vec<u32> = pids.lines().map(str::parse).collect::<Result<_, _>>()?;
    // Linux 6.1 puts a kernel thread of each VM there, too; it has no command line.
    pids.retain(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| !text.is_empty()));
    pids.sort_unstable();
    let mut want = [shim_pid, vmm_pid];
    want.sort_unstable();
    ensure!(pids == want, "{pids:?} are in the cgroup, not {want:?}");
    let score = |pid: u32| -> Result<i32> {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
        Ok(text.trim().parse()?)
    };
    let (shim, vmm) = (score(shim_pid)?, score(vmm_pid)?);
    ensure!(shim < vmm, "oom_score_adj of the shim: {shim}, of the VMM: {vmm}");
    container.stop(0)?;
    pod.remove()?;
    ensure!(!cgroup.exists(), "{} is left", cgroup.display());
    Ok(Outcome::text("as expected"))
}

/// The shim lives and reports why the pod ended.
fn host_limit(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let cgroup = recorded(&pod)?.cgroup.context("no cgroup is recorded")?;
    let used: u64 = fs::read_to_string(cgroup.join("memory.current"))?
        .trim()
        .parse()?;
    fs::write(cgroup.join("memory.max"), (used + (16 << 20)).to_string())?;
    let used_up = container.exec("head -c 134217728 /dev/zero >/dev/shm/a");
    let is_killed = used_up.as_ref().map_or(true, |outcome| outcome.code == Some(137));
    ensure!(is_killed, "128 MiB fit into the cgroup: {used_up:?}");
    let ended = container.ended()?;
    ensure!(ended.code == Some(137), "{ended}");
    let file = state::failure_file(&key(&pod)?);
    let failure: state::Failure = serde_json::from_slice(&fs::read(&file)?)?;
    ensure!(failure.reason.contains("SIGKILL"), "{failure:?}");
    pod.remove()?;
    ensure!(!cgroup.exists(), "{} is left", cgroup.display());
    Ok(Outcome::text("as expected"))
}

fn lines(seen: &[Value]) -> String {
    seen.iter().map(|line| format!("{line}\n")).collect()
}
