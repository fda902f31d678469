//! How containers end: grace, stop signals, reasons.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::plain_pod;
use crate::cri::pod::Pod;
use crate::cri::{Case, PodKind, in_pod};
use crate::parity::Outcome;

static POD: PodKind = plain_pod("ends");

pub const CASES: &[Case] = &[
    in_pod("stop: within the grace", &POD, |pod| {
        stopped(pod, "trap 'echo bye; exit 3' TERM", Value::Null, 30)
    }),
    in_pod("stop: SIGKILL when the grace is over", &POD, |pod| {
        stopped(pod, "trap 'echo no' TERM", Value::Null, 2)
    }),
    in_pod("stop: without grace", &POD, |pod| {
        stopped(pod, "trap 'exit 3' TERM", Value::Null, 0)
    }),
    in_pod("stop: the image's signal", &POD, |pod| {
        let image = json!({"image": {"image": "localhost/configured:lab"}});
        stopped(pod, "trap 'exit 9' USR1; trap 'exit 3' TERM", image, 30)
    }),
    in_pod("stop: the container's signal", &POD, |pod| {
        let signal = json!({"stop_signal": "SIGNAL_SIGINT"});
        stopped(pod, "trap 'exit 8' INT; trap 'exit 3' TERM", signal, 30)
    })
    .since("2.2"),
    in_pod("end: killed for want of memory", &POD, out_of_memory),
    in_pod("end: children die with the first process", &POD, children),
];

/// Starts a container that has the handlers `traps`, stops it, and tells how it ended.
fn stopped(pod: &Pod<'_>, traps: &str, change: Value, seconds: u64) -> Result<Outcome> {
    let script = format!("{traps}; echo up; while :; do sleep 0.1; done");
    let container = pod.start(&script, change)?;
    container.prints("up")?;
    let took = container.stop(seconds)?;
    let grace = Duration::from_secs(seconds);
    let outcome = container.ended()?;
    let killed = outcome.code == Some(137);
    ensure!(
        !killed || took >= grace,
        "killed after {took:?}, before the grace was over"
    );
    ensure!(killed || took < grace, "took {took:?}");
    let reason = container.status()?["reason"].clone();
    Ok(Outcome {
        stdout: format!("{}{reason}", outcome.stdout),
        ..outcome
    })
}

fn out_of_memory(pod: &Pod<'_>) -> Result<Outcome> {
    let outcome = use_too_much(pod)?;
    // The pod and its other containers live on.
    let next = pod.run("echo lives", Value::Null)?;
    Ok(Outcome::text(format!("{outcome}\n{next}")))
}

fn use_too_much(pod: &Pod<'_>) -> Result<String> {
    let limit = json!({"linux": {"resources": {"memory_limit_in_bytes": 48 << 20}}});
    // tail keeps the last line, which never ends.
    let container = pod.start("exec tail -n 1 /dev/zero", limit)?;
    // The reason comes by an event of its own, before the end or after it.
    let status =
        container.wait(|status| status["reason"] == "OOMKilled" && status["state"] == "CONTAINER_EXITED")?;
    Ok(json!([status["state"], status["exit_code"], status["reason"]]).to_string())
}

fn children(pod: &Pod<'_>) -> Result<Outcome> {
    pod.run(
        "sleep 1000000 & (setsid sleep 1000000 &) ; echo started; exit 4",
        Value::Null,
    )
}
