//! What is refused: by whom, with which text, and that nothing is left of it.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{plain_pod, security, without_numbers};
use crate::cri::node::Node;
use crate::cri::pod::Pod;
use crate::cri::{Case, PodKind, calls, in_pod};
use crate::parity::Outcome;

static POD: PodKind = plain_pod("refused");

pub const CASES: &[Case] = &[
    calls("refused: a runtime handler that does not exist", no_handler),
    calls("refused: a network that fails half-way", network_fails),
    calls("refused: a pod without a name", no_name),
    calls("refused: a container of a pod that is gone", pod_gone),
    calls("refused: a container of a pod that was stopped", pod_stopped),
    in_pod("refused: an image that does not exist", &POD, no_image),
    in_pod("refused: an unknown user", &POD, unknown_user),
    calls("refused: a sysctl that does not exist", no_sysctl),
    in_pod(
        "refused: a working directory that is a file",
        &POD,
        directory_is_file,
    ),
    calls("refused: ids of nothing", ids_of_nothing),
    // Without a pause container, such a pod ends a containerd before 2.3 by a nil pointer, in NewBundle: the shim is
    // not even started (containerd's issue 12983).
    calls("refused: the host's network", |node| hosts(node, "network"))
        .sandbox_api_since("2.3")
        .allow_difference(
            NO_HOST,
            "the host's network namespace can't be shared with a guest",
        ),
    calls("refused: the host's process ids", |node| hosts(node, "pid"))
        .allow_difference(NO_HOST, "the host's pid namespace can't be shared with a guest"),
    calls("refused: the host's ipc", |node| hosts(node, "ipc"))
        .allow_difference(NO_HOST, "the host's ipc namespace can't be shared with a guest"),
];

const NO_HOST: &str = "a pod in its own VM cannot be in a namespace of the host";

/// A pod with this configuration is refused; the error is the outcome.
fn pod_refused(node: &Node, change: Value) -> Result<String> {
    let request = json!({"config": node.pod_config(change), "runtime_handler": node.handler});
    Ok(without_numbers(&node.refused("RunPodSandbox", request)?.message))
}

fn no_handler(node: &Node) -> Result<Outcome> {
    let request = json!({"config": node.pod_config(Value::Null), "runtime_handler": "no-such"});
    Ok(Outcome::text(without_numbers(
        &node.refused("RunPodSandbox", request)?.message,
    )))
}

fn network_fails(node: &Node) -> Result<Outcome> {
    let change = json!({"annotations": {"lab/links": "2", "lab/fail": "the network is full"}});
    let text = pod_refused(node, change)?;
    ensure!(text.contains("the network is full"), "{text}");
    Ok(Outcome::text(text))
}

fn no_name(node: &Node) -> Result<Outcome> {
    let request = json!({"config": {"linux": {}}, "runtime_handler": node.handler});
    Ok(Outcome::text(node.refused("RunPodSandbox", request)?.message))
}

/// A container that is refused at its creation or its start: at which, and with which text.
fn container_refused(pod: &Pod<'_>, change: Value) -> Result<(&'static str, String)> {
    let node = pod.node();
    let outcome = match pod.create("true", change) {
        Err(error) => ("create", format!("{error:#}")),
        Ok(container) => (
            "start",
            node.refused("StartContainer", container.request())?.message,
        ),
    };
    let next = pod.run("echo next", Value::Null)?;
    ensure!(next.stdout == "next\n", "the pod is hurt: {next}");
    Ok(outcome)
}

fn pod_gone(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    pod.remove()?;
    let refused = pod.create("true", Value::Null);
    let text = refused.err().map(|error| without_numbers(&format!("{error:#}")));
    Ok(Outcome::text(format!("{text:?}")))
}

fn pod_stopped(node: &Node) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    pod.stop()?;
    let refused = pod.create("true", Value::Null).is_err();
    pod.remove()?;
    Ok(Outcome::text(format!("refused: {refused}")))
}

fn no_image(pod: &Pod<'_>) -> Result<Outcome> {
    let (when, text) = container_refused(pod, json!({"image": {"image": "localhost/none:lab"}}))?;
    Ok(Outcome::text(format!("{when}: {}", text.contains("not found"))))
}

fn unknown_user(pod: &Pod<'_>) -> Result<Outcome> {
    let (when, text) = container_refused(pod, security(json!({"run_as_username": "nobody-here"})))?;
    Ok(Outcome::text(format!("{when}: {}", without_numbers(&text))))
}

fn no_sysctl(node: &Node) -> Result<Outcome> {
    let text = pod_refused(node, json!({"linux": {"sysctls": {"net.no.such": "1"}}}))?;
    ensure!(
        text.contains("net.no.such") || text.contains("net/no/such"),
        "{text}"
    );
    Ok(Outcome::text("refused by name"))
}

fn directory_is_file(pod: &Pod<'_>) -> Result<Outcome> {
    let (when, text) = container_refused(pod, json!({"working_dir": "/etc/passwd"}))?;
    ensure!(text.contains("/etc/passwd"), "{text}");
    Ok(Outcome::text(when))
}

fn ids_of_nothing(node: &Node) -> Result<Outcome> {
    let mut seen = String::new();
    for method in ["StopPodSandbox", "RemovePodSandbox", "PodSandboxStatus"] {
        let answer = node.call(method, json!({"pod_sandbox_id": "none"}));
        seen.push_str(&format!(
            "{method}: {:?}\n",
            answer.err().map(|error| format!("{error:#}"))
        ));
    }
    for method in [
        "StartContainer",
        "StopContainer",
        "RemoveContainer",
        "ContainerStatus",
        "ContainerStats",
        "Exec",
    ] {
        let answer = node.call(method, json!({"container_id": "none"}));
        seen.push_str(&format!(
            "{method}: {:?}\n",
            answer.err().map(|error| format!("{error:#}"))
        ));
    }
    Ok(Outcome::text(seen))
}

/// A pod in the host's namespace of this kind: runc runs it, Nacre must name what it refuses.
fn hosts(node: &Node, namespace: &str) -> Result<Outcome> {
    let options = json!({"namespace_options": {namespace: "NODE"}});
    let pod = node.pod(security(options))?;
    let outcome = pod.run("echo runs", Value::Null)?;
    pod.remove()?;
    Ok(outcome)
}
