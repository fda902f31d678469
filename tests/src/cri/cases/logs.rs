//! Logs, as kubelet reads them.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::plain_pod;
use crate::cri::node::Node;
use crate::cri::pod::Pod;
use crate::cri::{Case, PodKind, calls, in_pod};
use crate::parity::Outcome;

static POD: PodKind = plain_pod("logs");

pub const CASES: &[Case] = &[
    in_pod(
        "log: both streams, long lines, no line feed at the end",
        &POD,
        entries,
    ),
    in_pod("log: reopened after it was moved", &POD, reopened),
    // Under runc containerd 1.6.20 loses the end now and then, so runc is nothing to compare with.
    calls("log: two megabytes are complete", two_megabytes).only_nacre(),
    calls("log: ten megabytes are complete", ten_megabytes)
        .only_nacre()
        .long(),
    in_pod("log: six containers of one line each", &POD, |pod| {
        one_line_each(pod, 6)
    }),
    in_pod("log: 20 containers of one line each", &POD, |pod| {
        one_line_each(pod, 20)
    })
    .long(),
];

/// What [`complete`] writes, again and again.
const LINE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef";

fn entries(pod: &Pod<'_>) -> Result<Outcome> {
    let script =
        "echo one; echo err >&2; sleep 0.2; head -c 40000 /dev/zero | tr '\\0' x; echo; echo; printf end";
    let container = pod.start(script, Value::Null)?;
    container.ended()?;
    let mut lines = container.lines()?;
    lines.sort_by_key(|line| line.stream.clone());
    let seen = lines.iter().map(|line| {
        let text = line.text.get(..10).unwrap_or(&line.text);
        format!("{} {} {} {text}\n", line.stream, line.full, line.text.len())
    });
    let seen = seen.collect::<String>();
    Ok(Outcome::text(seen))
}

fn reopened(pod: &Pod<'_>) -> Result<Outcome> {
    let node = pod.node();
    let go_on = tempfile::tempdir()?;
    let script = "echo before; while [ ! -e /go/on ]; do sleep 0.1; done; echo after";
    let mount = json!({"mounts": [{"container_path": "/go", "host_path": go_on.path()}]});
    let container = pod.start(script, mount)?;
    container.prints("before")?;
    let moved = container.log.with_extension("old");
    fs::rename(&container.log, &moved)?;
    node.call("ReopenContainerLog", container.request())?;
    fs::write(go_on.path().join("on"), "")?;
    let outcome = container.ended()?;
    let old = fs::read_to_string(moved)?;
    let old = old.split_once(' ').context("an empty log")?.1;
    Ok(Outcome::text(format!("{old}{}", outcome.stdout)))
}

fn two_megabytes(node: &Node) -> Result<Outcome> {
    complete(node, 2_000_000)
}

fn ten_megabytes(node: &Node) -> Result<Outcome> {
    complete(node, 10_000_000)
}

/// A container that ends at once after it has written `bytes`: containerd 1.6.20 reads the log only until it
/// knows of the exit.
fn complete(node: &Node, bytes: usize) -> Result<Outcome> {
    let pod = node.pod(Value::Null)?;
    let outcome = pod.run(&format!("yes {LINE} | head -c {bytes}"), Value::Null)?;
    pod.remove()?;
    ensure!(outcome.code == Some(0), "exit code {:?}", outcome.code);
    let complete = format!("{LINE}\n").repeat(bytes.div_ceil(LINE.len() + 1));
    let complete = complete.get(..bytes).unwrap_or_default();
    ensure!(
        outcome.stdout.trim_end() == complete.trim_end(),
        "{} bytes of {bytes}, or others",
        outcome.stdout.len()
    );
    Ok(outcome)
}

fn one_line_each(pod: &Pod<'_>, count: usize) -> Result<Outcome> {
    let mut printed = String::new();
    for number in 0..count {
        printed += &pod.run(&format!("echo {number}"), Value::Null)?.stdout;
    }
    Ok(Outcome::text(printed))
}
