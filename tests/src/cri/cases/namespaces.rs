//! What the containers of a pod share, and what they don't.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{plain_pod, security};
use crate::cri::pod::Pod;
use crate::cri::{Case, PodKind, in_pod};
use crate::parity::Outcome;

static POD: PodKind = plain_pod("namespaces");

/// A pod whose containers see each other's processes.
static ONE_PID_NAMESPACE: PodKind = PodKind {
    name: "one pid namespace",
    change: || security(json!({"namespace_options": {"pid": "POD"}})),
};

pub const CASES: &[Case] = &[
    in_pod("namespaces: shared and private ones", &POD, shared),
    in_pod("pids: of each container", &POD, |pod| pids(pod, "CONTAINER")),
    in_pod("pids: of the pod", &ONE_PID_NAMESPACE, |pod| pids(pod, "POD")),
    in_pod(
        "pids: of the pod: orphans are reaped",
        &ONE_PID_NAMESPACE,
        orphans,
    ),
    in_pod("pids: of a target container", &POD, target),
    in_pod("ipc: /dev/shm is the pod's", &POD, ipc),
];

fn shared(pod: &Pod<'_>) -> Result<Outcome> {
    let one = pod.start("exec sleep 1000000", Value::Null)?;
    let two = pod.start("exec sleep 1000000", Value::Null)?;
    let mut seen = Vec::new();
    for name in ["net", "ipc", "uts", "mnt", "pid", "cgroup"] {
        let script = format!("readlink /proc/self/ns/{name}");
        let same = one.output(&script)? == two.output(&script)?;
        seen.push(format!("{name}: {same}"));
    }
    Ok(Outcome::text(seen.join("\n")))
}

fn pids(pod: &Pod<'_>, of: &str) -> Result<Outcome> {
    let one = pod.start("echo up; exec sleep 1111", Value::Null)?;
    let two = pod.start("exec sleep 2222", Value::Null)?;
    one.prints("up")?;
    let script = "until ps -o args | grep -q '^sleep 2222'; do sleep 0.1; done
        ps -o args | grep '^sleep [12]' | sort; test $$ = 1; echo $?";
    let mut seen = two.output(script)?;
    if of == "POD" {
        // A signal reaches the other container, whose end is its own.
        two.output("kill $(ps -o pid,args | awk '/sleep 1111/ && !/awk/ {print $1}')")?;
        let ended = one.ended()?;
        seen.push_str(&format!("{:?}", ended.code));
    }
    ensure!(two.status()?["state"] == "CONTAINER_RUNNING");
    Ok(Outcome::text(seen))
}

fn orphans(pod: &Pod<'_>) -> Result<Outcome> {
    let container = pod.start("exec sleep 1000000", Value::Null)?;
    let script = "for i in 1 2 3 4 5; do sh -c 'sleep 0.1 & exit'; done
        while ps -o comm,args | grep -q '^sleep *sleep 0.1'; do sleep 0.1; done
        ps -o stat | grep -c Z; true";
    let seen = container.output(script)?;
    Ok(Outcome::text(seen))
}

fn target(pod: &Pod<'_>) -> Result<Outcome> {
    let app = pod.start("exec sleep 1111", Value::Null)?;
    let options = json!({"namespace_options": {"pid": "TARGET", "target_id": app.id}});
    // As an ephemeral container of kubectl debug.
    let outcome = pod.run(
        "cat /proc/1/cmdline | tr '\\0' ' '; test $$ = 1; echo $?",
        security(options),
    )?;
    let missing = json!({"namespace_options": {"pid": "TARGET", "target_id": "0123456789"}});
    let refused = pod.create("true", security(missing)).is_err();
    ensure!(app.status()?["state"] == "CONTAINER_RUNNING");
    Ok(Outcome::text(format!("{outcome}{refused}")))
}

fn ipc(pod: &Pod<'_>) -> Result<Outcome> {
    let one = pod.start("exec sleep 1000000", Value::Null)?;
    let mut seen = one.output("echo kept >/dev/shm/a; df -k /dev/shm | tail -n 1 | awk '{print $2}'")?;
    seen.push_str(
        &pod.run(
            "cat /dev/shm/a; rm /dev/shm/a; echo more >/dev/shm/b",
            Value::Null,
        )?
        .stdout,
    );
    one.remove()?;
    seen.push_str(&pod.run("ls /dev/shm; cat /dev/shm/b", Value::Null)?.stdout);
    Ok(Outcome::text(seen))
}
