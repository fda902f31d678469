//! The life of containers in a pod: states, restarts, init containers, many of them.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{plain_pod, without_numbers};
use crate::cri::node::Node;
use crate::cri::pod::Pod;
use crate::cri::{Case, PodKind, calls, in_pod};
use crate::parity::Outcome;

static POD: PodKind = plain_pod("containers");

pub const CASES: &[Case] = &[
    in_pod("container: states and times", &POD, states),
    in_pod("container: calls at the wrong time", &POD, wrong_time),
    calls("container: listed by id, state and pod", listed),
    in_pod("container: restarted as a next attempt", &POD, restarted),
    in_pod(
        "container: init containers prepare a volume",
        &POD,
        init_containers,
    ),
    in_pod(
        "container: a failed one does not hurt the others",
        &POD,
        failed_one,
    ),
    in_pod("container: six in a pod", &POD, |pod| many(pod, 6)),
    in_pod("container: 20 in a pod", &POD, |pod| many(pod, 20)).long(),
    calls("container: events", events).since("1.7"),
];

fn states(pod: &Pod<'_>) -> Result<Outcome> {
    let mut seen = Vec::new();
    let config =
        json!({"labels": {"app": "web"}, "annotations": {"note": "a b"}, "metadata": {"attempt": 3}});
    for script in ["sleep 0.5; exit 0", "sleep 0.5; exit 5"] {
        let container = pod.create(script, config.clone())?;
        let status = container.status()?;
        seen.push(json!([status["state"], status["labels"], status["annotations"]]));
        container.start()?;
        let status = container.wait(|status| status["state"] == "CONTAINER_EXITED")?;
        seen.push(json!([
            status["state"],
            status["exit_code"],
            status["reason"],
            status["message"]
        ]));
        let times = ["created_at", "started_at", "finished_at"].map(|time| status[time].as_i64());
        ensure!(times.is_sorted() && times[0] > Some(0), "{times:?}");
        container.remove()?;
    }
    Ok(Outcome::text(json!(seen).to_string()))
}

fn wrong_time(pod: &Pod<'_>) -> Result<Outcome> {
    let node = pod.node();
    let container = pod.create("exec sleep 1000000", Value::Null)?;
    let mut seen = Vec::new();
    let mut refused = |method: &str, request: Value| -> Result<()> {
        let status = node.refused(method, request)?;
        seen.push(format!("{method}: {}", status.code));
        Ok(())
    };
    refused("ExecSync", json!({"container_id": container.id, "cmd": ["true"]}))?;
    container.start()?;
    refused("StartContainer", container.request())?;
    container.stop(0)?;
    container.stop(0)?;
    refused("StartContainer", container.request())?;
    refused("ExecSync", json!({"container_id": container.id, "cmd": ["true"]}))?;
    container.remove()?;
    container.remove()?;
    refused("ContainerStatus", container.request())?;
    // One that runs is killed first.
    pod.start("exec sleep 1000000", Value::Null)?.remove()?;
    // One that never ran can be stopped.
    let created = pod.create("true", Value::Null)?;
    created.stop(1)?;
    seen.push(created.status()?["state"].to_string());
    Ok(Outcome::text(seen.join("\n")))
}

fn listed(node: &Node) -> Result<Outcome> {
    let (pod, other) = (node.pod(Value::Null)?, node.pod(Value::Null)?);
    let running = pod.start("exec sleep 1000000", Value::Null)?;
    pod.create("true", Value::Null)?;
    other.create("true", Value::Null)?;
    let count = |filter: Value| -> Result<usize> {
        let answer = node.call("ListContainers", json!({"filter": filter}))?;
        Ok(answer["containers"].as_array().context("no list")?.len())
    };
    let seen = [
        count(json!({"pod_sandbox_id": pod.id}))?,
        count(json!({"pod_sandbox_id": pod.id, "state": {"state": "CONTAINER_RUNNING"}}))?,
        count(json!({"pod_sandbox_id": pod.id, "state": {"state": "CONTAINER_CREATED"}}))?,
        count(json!({"id": running.id}))?,
        count(json!({"pod_sandbox_id": other.id}))?,
    ];
    other.remove()?;
    pod.remove()?;
    Ok(Outcome::text(format!("{seen:?}")))
}

fn restarted(pod: &Pod<'_>) -> Result<Outcome> {
    let node = pod.node();
    let volume = tempfile::tempdir()?;
    let mut seen = String::new();
    let mut names = Vec::new();
    for attempt in 0..3 {
        let script = "date +%s >>/volume/starts; ls /tmp; touch /tmp/mine; wc -l </volume/starts; exit 1";
        let config = json!({
            "metadata": {"name": "app", "attempt": attempt},
            "log_path": format!("app-{attempt}.log"),
            "mounts": [{"container_path": "/volume", "host_path": volume.path()}],
        });
        let container = pod.start(script, config.clone())?;
        let outcome = container.ended()?;
        seen.push_str(&outcome.to_string());
        // The attempt is part of the name, and the old container keeps it.
        if attempt == 0 {
            let request = json!({"pod_sandbox_id": pod.id, "config": {"metadata": {"name": "app"}, "image": {"image": "busybox"}}, "sandbox_config": pod.config});
            seen.push_str(&without_numbers(
                &node.refused("CreateContainer", request)?.message,
            ));
        }
        names.push(container.id.clone());
    }
    Ok(Outcome::text(seen))
}

fn init_containers(pod: &Pod<'_>) -> Result<Outcome> {
    let volume = tempfile::tempdir()?;
    let mount = json!({"mounts": [{"container_path": "/volume", "host_path": volume.path()}]});
    let mut seen = String::new();
    for script in [
        "echo one >/volume/a; ln -s a /volume/b",
        "cat /volume/b; echo two >>/volume/a; mkdir /volume/d; chmod 700 /volume/d",
        "cat /volume/b; stat -c '%a %F' /volume/d",
    ] {
        seen.push_str(&pod.run(script, mount.clone())?.to_string());
    }
    seen.push_str(&std::fs::read_to_string(volume.path().join("b"))?);
    Ok(Outcome::text(seen))
}

fn failed_one(pod: &Pod<'_>) -> Result<Outcome> {
    let node = pod.node();
    let steady = pod.start(
        "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done",
        Value::Null,
    )?;
    steady.prints("up")?;
    let mut seen = Vec::new();
    let killed = pod.run("kill -9 $$; sh -c 'kill -SEGV $$'; exit 3", Value::Null)?;
    seen.push(format!("{:?}", killed.code));
    let missing = pod.create("", json!({"command": ["/no/such/program"]}))?;
    node.refused("StartContainer", missing.request())?;
    let status = missing.status()?;
    seen.push(json!([status["state"], status["exit_code"], status["reason"]]).to_string());
    seen.push(steady.output("echo alive")?);
    steady.stop(10)?;
    seen.push(steady.status()?["exit_code"].to_string());
    Ok(Outcome::text(seen.join("\n")))
}

fn many(pod: &Pod<'_>, count: usize) -> Result<Outcome> {
    let mut containers = Vec::new();
    for number in 0..count {
        let script = format!("echo {number} >/dev/shm/{number}; echo up; exec sleep 1000000");
        let container = pod.start(&script, Value::Null)?;
        container.prints("up")?;
        containers.push(container);
    }
    let first = containers.first().context("no containers")?;
    let seen = first.output("ls /dev/shm | sort -n | tr '\\n' ' '; set -- /proc/[0-9]*; echo $#")?;
    for (number, container) in containers.iter().enumerate() {
        ensure!(
            container.status()?["state"] == "CONTAINER_RUNNING",
            "container {number}"
        );
    }
    Ok(Outcome::text(seen))
}

fn events(node: &Node) -> Result<Outcome> {
    let other = node.again()?;
    let mut events = other.stream("GetContainerEvents", &json!({}))?;
    // containerd 1.7 gives each event to one client, also to one that has gone: its first event ends it.
    node.pod(Value::Null)?.remove()?;
    let pod = node.pod(Value::Null)?;
    let container = pod.start("exit 0", Value::Null)?;
    container.ended()?;
    container.remove()?;
    let (id, of_pod) = (container.id.clone(), pod.id.clone());
    pod.remove()?;
    let mut seen = String::new();
    loop {
        let event = events.receive().with_context(|| format!("after {seen:?}"))?;
        let of = match event["container_id"].as_str() {
            Some(found) if found == id => "container",
            Some(found) if found == of_pod => "pod",
            _ => continue,
        };
        let kind = event["container_event_type"].as_str().unwrap_or_default();
        seen.push_str(&format!("{of} {kind}\n"));
        if of == "pod" && kind == "CONTAINER_DELETED_EVENT" {
            return Ok(Outcome::text(seen));
        }
    }
}
