//! Exec, attach and port-forward by containerd's streaming server.

use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::plain_pod;
use crate::cri::node::{Node, text};
use crate::cri::pod::Pod;
use crate::cri::session::{END, RESIZE, STDERR, STDIN, STDOUT, Session};
use crate::cri::{Case, PodKind, in_pod};
use crate::parity::Outcome;

static POD: PodKind = plain_pod("streams");

pub const CASES: &[Case] = &[
    in_pod("stream: exec with both streams and an exit code", &POD, exec),
    in_pod("stream: exec with standard input", &POD, exec_stdin),
    in_pod("stream: exec on a terminal, resized", &POD, exec_terminal),
    in_pod("stream: attach", &POD, attach),
    in_pod("stream: port-forward to the pod's localhost", &POD, |pod| {
        port_forward(pod, "127.0.0.1")
    }),
    in_pod("stream: port-forward to IPv6 localhost", &POD, |pod| {
        port_forward(pod, "[::1]")
    }),
    in_pod("stream: port-forward to a closed port", &POD, port_forward_closed).allow_difference(
        "the connection is accepted on the host and closed when the guest refuses it, so containerd sees no error",
        "refused: false",
    ),
];

fn open(node: &Node, method: &str, request: Value) -> Result<Session> {
    let answer = node.call(method, request)?;
    Session::open(&text(&answer, "/url")?)
}

fn exec(pod: &Pod<'_>) -> Result<Outcome> {
    let node = pod.node();
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let command = ["sh", "-c", "echo out; echo err >&2; exit 7"];
    let request = json!({"container_id": container.id, "cmd": command, "stdout": true, "stderr": true});
    let mut session = open(node, "Exec", request)?;
    let mut channels = [const { Vec::new() }; 4];
    while let Some((channel, data)) = session.receive()? {
        channels
            .get_mut(usize::from(channel))
            .context("an unknown channel")?
            .extend(data);
    }
    let shown = [STDOUT, STDERR, END].map(|channel| {
        let all = channels.get(usize::from(channel)).cloned().unwrap_or_default();
        String::from_utf8_lossy(&all).into_owned()
    });
    Ok(Outcome::text(shown.join("\n")))
}

fn exec_stdin(pod: &Pod<'_>) -> Result<Outcome> {
    let node = pod.node();
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let script = "read a; echo got $a; read b; echo got $b";
    let request = json!({
        "container_id": container.id, "cmd": ["sh", "-c", script], "stdin": true, "stdout": true,
    });
    let mut session = open(node, "Exec", request)?;
    session.send(STDIN, b"one\n")?;
    let mut seen = session.read_until(STDOUT, |all| all.ends_with(b"\n"))?;
    session.send(STDIN, b"two\n")?;
    seen.extend(session.read_until(STDOUT, |all| all.ends_with(b"\n"))?);
    let end = session.read_until(END, |all| all.ends_with(b"}"))?;
    seen.extend(end);
    Ok(Outcome::text(String::from_utf8_lossy(&seen)))
}

fn exec_terminal(pod: &Pod<'_>) -> Result<Outcome> {
    let node = pod.node();
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let script = "trap 'stty size; exit 0' WINCH; test -t 0 && echo ready; while :; do sleep 0.1; done";
    let request = json!({
        "container_id": container.id, "cmd": ["sh", "-c", script], "tty": true, "stdin": true, "stdout": true,
    });
    let mut session = open(node, "Exec", request)?;
    let mut seen = session.read_until(STDOUT, |all| all.ends_with(b"ready\r\n"))?;
    session.send(RESIZE, br#"{"Width":123,"Height":45}"#)?;
    seen.extend(session.read_until(STDOUT, |all| all.ends_with(b"\r\n"))?);
    Ok(Outcome::text(String::from_utf8_lossy(&seen)))
}

fn attach(pod: &Pod<'_>) -> Result<Outcome> {
    let node = pod.node();
    let script = "echo up; while read line; do echo got $line; done";
    let container = pod.start(script, json!({"stdin": true}))?;
    container.prints("up")?;
    let request = json!({"container_id": container.id, "stdin": true, "stdout": true});
    let mut session = open(node, "Attach", request)?;
    session.send(STDIN, b"a line\n")?;
    let seen = session.read_until(STDOUT, |all| all.ends_with(b"got a line\n"))?;
    container.prints("got a line")?;
    Ok(Outcome::text(String::from_utf8_lossy(&seen)))
}

fn port_forward(pod: &Pod<'_>, localhost: &str) -> Result<Outcome> {
    let node = pod.node();
    let script =
        format!("echo hello >/tmp/hello; httpd -p {localhost}:8080 -h /tmp && echo up; exec sleep 1000000");
    pod.start(&script, Value::Null)?.prints("up")?;
    let seen = forwarded(node, &pod.id)?;
    // Nothing outside the pod reaches what listens on its localhost.
    let [first, _] = pod.addresses()?;
    ensure!(
        TcpStream::connect(format!("{first}:8080")).is_err(),
        "localhost is reached from outside"
    );
    let again = forwarded(node, &pod.id)?;
    Ok(Outcome::text(format!("{seen}{again}")))
}

/// What the pod's web server answers through port-forward.
fn forwarded(node: &Node, pod: &str) -> Result<String> {
    let request = json!({"pod_sandbox_id": pod, "port": [8080]});
    let mut session = open(node, "PortForward", request)?;
    session.send(0, b"GET /hello HTTP/1.0\r\n\r\n")?;
    let seen = session.read_until(0, |all| all.ends_with(b"hello\n"))?;
    let seen = String::from_utf8_lossy(&seen).into_owned();
    Ok(seen.lines().last().context("nothing")?.to_owned())
}

fn port_forward_closed(pod: &Pod<'_>) -> Result<Outcome> {
    let node = pod.node();
    let request = json!({"pod_sandbox_id": pod.id, "port": [81]});
    let mut session = open(node, "PortForward", request)?;
    let error = session.read_until(1, |all| all.len() > 2)?;
    let refused = String::from_utf8_lossy(&error).to_lowercase().contains("refused");
    Ok(Outcome::text(format!("refused: {refused}")))
}
