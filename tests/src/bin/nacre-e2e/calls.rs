//! Calls of the Task service made of the shim itself: the codes of errors, and what is true of figures.

use anyhow::{Result, ensure};
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, DeleteRequest, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResumeRequest, StartRequest, StateRequest, UpdateTaskRequest,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use nacre_tests::containerd::bundle::Bundle;
use nacre_tests::containerd::ctr::{Run, ctr, fresh_id, remove_detached, wait_until_stopped};
use nacre_tests::containerd::task;
use serde_json::{Value, json};
use ttrpc::Code;

use crate::{Test, core, test};

pub const TESTS: &[Test] = &[
    core("errors of calls have the right codes", codes),
    test(
        "errors of calls to a task that has ended have the right codes",
        codes_after_end,
    ),
    test("processes of a container are told", pids),
    test("metrics are true to the container's cgroup", metrics),
];

/// The code that `method` fails with.
fn fails(id: &str, method: &str, request: &(impl Message + std::fmt::Debug), code: Code) -> Result<()> {
    let answer: Result<Empty, ttrpc::Status> = task::call(id, method, request)?;
    match answer {
        Ok(_) => anyhow::bail!("{method} {request:?} was answered"),
        Err(status) => {
            ensure!(
                status.code() == code,
                "{method} {request:?} failed with {:?}: {}",
                status.code(),
                status.message()
            );
            ensure!(!status.message().is_empty(), "{method} fails without a word");
            Ok(())
        }
    }
}

fn any(value: impl Into<Vec<u8>>) -> MessageField<Any> {
    MessageField::some(Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Any".to_owned(),
        value: value.into(),
        ..Any::default()
    })
}

fn exec(exec_id: &str, process: &str) -> ExecProcessRequest {
    ExecProcessRequest {
        exec_id: exec_id.to_owned(),
        spec: any(process),
        ..ExecProcessRequest::default()
    }
}

fn kill(exec_id: &str, signal: u32) -> KillRequest {
    KillRequest {
        exec_id: exec_id.to_owned(),
        signal,
        ..KillRequest::default()
    }
}

fn update(resources: &str) -> UpdateTaskRequest {
    UpdateTaskRequest {
        resources: any(resources),
        ..UpdateTaskRequest::default()
    }
}

/// Gives a request the task's id. All requests of the service have the field, none shares a trait for it.
macro_rules! of {
    ($id:expr, $request:expr) => {{
        let mut request = $request;
        request.id = $id.to_owned();
        request
    }};
}

fn codes() -> Result<()> {
    let id = fresh_id("codes");
    Run {
        command: &["sleep", "1000000"],
        ..Run::default()
    }
    .detach(&id)?;
    let seen = codes_of(&id);
    remove_detached(&id)?;
    seen
}

fn codes_of(id: &str) -> Result<()> {
    let named = |exec_id: &str| exec_id.to_owned();
    fails(
        id,
        "State",
        &of!("no-such-task", StateRequest::new()),
        Code::NOT_FOUND,
    )?;
    fails(
        id,
        "State",
        &of!(
            id,
            StateRequest {
                exec_id: named("none"),
                ..StateRequest::new()
            }
        ),
        Code::NOT_FOUND,
    )?;
    fails(
        id,
        "Start",
        &of!(
            id,
            StartRequest {
                exec_id: named("none"),
                ..StartRequest::new()
            }
        ),
        Code::NOT_FOUND,
    )?;
    fails(
        id,
        "Start",
        &of!(id, StartRequest::new()),
        Code::FAILED_PRECONDITION,
    )?;
    fails(
        id,
        "Delete",
        &of!(
            id,
            DeleteRequest {
                exec_id: named("none"),
                ..DeleteRequest::new()
            }
        ),
        Code::NOT_FOUND,
    )?;
    fails(
        id,
        "Delete",
        &of!(id, DeleteRequest::new()),
        Code::FAILED_PRECONDITION,
    )?;
    fails(id, "Kill", &of!(id, kill("none", 9)), Code::NOT_FOUND)?;
    fails(id, "Kill", &of!(id, kill("", 999)), Code::INVALID_ARGUMENT)?;
    fails(
        id,
        "CloseIO",
        &of!(
            id,
            CloseIORequest {
                exec_id: named("none"),
                stdin: true,
                ..CloseIORequest::new()
            }
        ),
        Code::NOT_FOUND,
    )?;
    fails(id, "Exec", &of!(id, exec("x", "no JSON")), Code::INVALID_ARGUMENT)?;
    fails(id, "Exec", &of!(id, exec("x", "{}")), Code::INVALID_ARGUMENT)?;
    fails(id, "Exec", &of!(id, exec("", "{}")), Code::INVALID_ARGUMENT)?;
    let process = json!({"args": ["true"], "cwd": "/"}).to_string();
    let added: Result<Empty, ttrpc::Status> = task::call(id, "Exec", &of!(id, exec("taken", &process)))?;
    ensure!(added.is_ok(), "Exec failed: {added:?}");
    fails(
        id,
        "Exec",
        &of!(id, exec("taken", &process)),
        Code::ALREADY_EXISTS,
    )?;
    fails(id, "Update", &of!(id, update("no JSON")), Code::INVALID_ARGUMENT)?;
    fails(
        id,
        "Update",
        &of!(id, update(r#"{"pids":{"limit":"many"}}"#)),
        Code::INVALID_ARGUMENT,
    )?;
    fails(
        id,
        "Checkpoint",
        &of!(id, CheckpointTaskRequest::new()),
        Code::UNIMPLEMENTED,
    )?;
    fails(
        id,
        "Resume",
        &of!(id, ResumeRequest::new()),
        Code::FAILED_PRECONDITION,
    )?;
    let paused: Result<Empty, ttrpc::Status> = task::call(id, "Pause", &of!(id, PauseRequest::new()))?;
    ensure!(paused.is_ok(), "Pause failed: {paused:?}");
    fails(
        id,
        "Pause",
        &of!(id, PauseRequest::new()),
        Code::FAILED_PRECONDITION,
    )?;
    fails(
        id,
        "Exec",
        &of!(id, exec("y", &process)),
        Code::FAILED_PRECONDITION,
    )?;
    Ok(())
}

fn codes_after_end() -> Result<()> {
    let id = fresh_id("ended");
    Run {
        command: &["true"],
        ..Run::default()
    }
    .detach(&id)?;
    let seen = wait_until_stopped(&id).and_then(|()| {
        let process = json!({"args": ["true"], "cwd": "/"}).to_string();
        fails(
            &id,
            "Exec",
            &of!(id, exec("x", &process)),
            Code::FAILED_PRECONDITION,
        )?;
        fails(
            &id,
            "Pause",
            &of!(id, PauseRequest::new()),
            Code::FAILED_PRECONDITION,
        )?;
        fails(
            &id,
            "Resume",
            &of!(id, ResumeRequest::new()),
            Code::FAILED_PRECONDITION,
        )?;
        fails(&id, "Kill", &of!(id, kill("", 9)), Code::NOT_FOUND)?;
        fails(&id, "Update", &of!(id, update("{}")), Code::FAILED_PRECONDITION)
    });
    remove_detached(&id)?;
    seen
}

fn pids() -> Result<()> {
    let id = fresh_id("pids");
    Run {
        command: &["sh", "-c", "sleep 1000 & sleep 1000 & wait"],
        ..Run::default()
    }
    .detach(&id)?;
    // The exec is over when it is deleted, and by then the shell has started both.
    ctr([
        "task",
        "exec",
        "--exec-id",
        "x",
        &id,
        "sh",
        "-c",
        "until [ $(pidof sleep | wc -w) = 2 ]; do :; done",
    ])?
    .success()?;
    let answer: Result<PidsResponse, ttrpc::Status> = task::call(&id, "Pids", &of!(id, PidsRequest::new()))?;
    remove_detached(&id)?;
    let answer = answer.map_err(|status| anyhow::anyhow!("{status:?}"))?;
    let pids: Vec<u32> = answer.processes.iter().map(|process| process.pid).collect();
    ensure!(pids.len() == 3, "three processes expected: {pids:?}");
    Ok(())
}

/// 50 MiB in /dev/shm are the container's, and both its cgroup and the metrics say so.
fn metrics() -> Result<()> {
    let script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=50 2>/dev/null; cat /sys/fs/cgroup/memory.current /sys/fs/cgroup/pids.current";
    let bundle = Bundle::new(&["sleep", "1000000"], |spec| {
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}));
        }
        spec["linux"]["resources"]["memory"] = json!({"limit": 134_217_728});
        spec["linux"]["resources"]["pids"] = json!({"limit": 50});
    })?;
    let id = fresh_id("metrics");
    Run {
        config: Some(&bundle.config()?),
        ..Run::default()
    }
    .detach(&id)?;
    let told = || -> Result<Value> {
        let text = ctr(["task", "metrics", "--format", "json", &id])?.success()?;
        Ok(serde_json::from_str(&text)?)
    };
    let seen = (|| {
        let before = told()?;
        let inside = ctr(["task", "exec", "--exec-id", "x", &id, "sh", "-c", script])?.success()?;
        Ok::<_, anyhow::Error>((before, inside, told()?))
    })();
    remove_detached(&id)?;
    let (before, inside, after) = seen?;
    let usage = |metrics: &Value| metrics["memory"]["usage"].as_u64().unwrap_or_default();
    let current: u64 = inside.lines().next().unwrap_or_default().parse()?;
    ensure!(
        usage(&after) >= usage(&before) + (50 << 20) && usage(&after) < 134_217_728,
        "50 MiB more: {} then {}",
        usage(&before),
        usage(&after)
    );
    ensure!(
        current.abs_diff(usage(&after)) < 4 << 20,
        "memory.current {current}, told {}",
        usage(&after)
    );
    ensure!(
        after["pids"] == json!({"current": 1, "limit": 50})
            && after["memory"]["usage_limit"] == 134_217_728_u64,
        "{after:#}"
    );
    ensure!(
        after["cpu"]["usage_usec"].as_u64() > before["cpu"]["usage_usec"].as_u64(),
        "no CPU time was used: {after:#}"
    );
    Ok(())
}
