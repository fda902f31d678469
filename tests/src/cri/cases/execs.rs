//! ExecSync, where a script in a shared container does not do.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{plain_pod, without_numbers};
use crate::cri::node::Node;
use crate::cri::pod::Pod;
use crate::cri::{Case, PodKind, in_pod};
use crate::parity::Outcome;

static POD: PodKind = plain_pod("execs");

pub const CASES: &[Case] = &[
    in_pod("exec: time-out ends it", &POD, time_out),
    in_pod("exec: a program that does not exist", &POD, missing),
    in_pod("exec: the container's user and environment", &POD, user),
    in_pod("exec: ten at once", &POD, ten),
    in_pod("exec: two megabytes of output are complete", &POD, output),
];

fn time_out(pod: &Pod<'_>) -> Result<Outcome> {
    let node = pod.node();
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let request = json!({"container_id": container.id, "cmd": ["sleep", "4321"], "timeout": 1});
    let refused = node.refused("ExecSync", request)?;
    let left = container.output("ps -o args | grep -c '^sleep 4321'; true")?;
    Ok(Outcome::text(format!("{} {left}", refused.code)))
}

fn missing(pod: &Pod<'_>) -> Result<Outcome> {
    let node = pod.node();
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let request = json!({"container_id": container.id, "cmd": ["/no/such/program"]});
    let refused = node.refused("ExecSync", request)?;
    ensure!(refused.message.contains("/no/such/program"), "{refused}");
    let after = container.output("echo alive")?;
    let text = without_numbers(&refused.message);
    ensure!(text.contains("no such file"), "{text}");
    Ok(Outcome::text(after))
}

fn user(pod: &Pod<'_>) -> Result<Outcome> {
    let config = json!({
        "envs": [{"key": "A", "value": "of the container"}],
        "working_dir": "/var",
        "linux": {"security_context": {
            "run_as_user": {"value": 1000},
            "run_as_group": {"value": 1001},
            "supplemental_groups": [22, 33],
            "no_new_privs": true,
            "capabilities": {"drop_capabilities": ["ALL"]},
        }},
    });
    let container = pod.start("exec sleep 1000000", config)?;
    let script = "id; pwd; echo $A; grep -E '^(CapBnd|NoNewPrivs)' /proc/self/status";
    container.exec(script)
}

fn ten(pod: &Pod<'_>) -> Result<Outcome> {
    let node = pod.node();
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let id = container.id.clone();
    let outcomes: Result<Vec<Value>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..10)
            .map(|number| {
                let (runtime, handler, id) = (node.runtime, node.handler.clone(), id.clone());
                scope.spawn(move || {
                    let script = format!("seq {number} 1000 | tail -n {number}; exit {number}");
                    let request = json!({"container_id": id, "cmd": ["sh", "-c", script]});
                    Node::new(runtime, &handler)?.call("ExecSync", request)
                })
            })
            .collect();
        let ended = running
            .into_iter()
            .map(|thread| thread.join().ok().context("a thread panicked")?);
        ended.collect()
    });
    Ok(Outcome::text(json!(outcomes?).to_string()))
}

/// The program ends at once after it has written them.
fn output(pod: &Pod<'_>) -> Result<Outcome> {
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let outcome = container.exec("yes 0123456789 | head -c 2000000; exit 3")?;
    let wrong = outcome
        .stdout
        .lines()
        .filter(|line| *line != "0123456789")
        .count();
    Ok(Outcome::text(format!(
        "{:?}: {} bytes, {wrong} short lines",
        outcome.code,
        outcome.stdout.len()
    )))
}
