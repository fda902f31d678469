//! Tests of Task calls made directly to the shim: the codes of errors, and the values of Pids and Stats.

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
use nacre_tests::leaks::only_process;

pub const TESTS: &[Test] = &[
    core("failed calls return the right codes", error_codes),
    test(
        "failed calls to an exited task return the right codes",
        error_codes_after_exit,
    ),
    test("Pids returns PIDs of the host", pids),
    test("metrics match the container's cgroup", metrics),
];

/// Checks that a call of `method` fails with `code` and a message.
fn expect_error(
    id: &str,
    method: &str,
    request: &(impl Message + std::fmt::Debug),
    code: Code,
) -> Result<()> {
    let response: Result<Empty, ttrpc::Status> = task::call(id, method, request)?;
    match response {
        Ok(_) => anyhow::bail!("{method} {request:?} succeeded"),
        Err(status) => {
            ensure!(
                status.code() == code,
                "{method} {request:?} failed with {:?}: {}",
                status.code(),
                status.message()
            );
            ensure!(!status.message().is_empty(), "{method} failed without a message");
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

/// Sets the field `id` of a request. All requests of the service have the field, but no trait gives access to
/// it.
macro_rules! with_id {
    ($id:expr, $request:expr) => {{
        let mut request = $request;
        request.id = $id.to_owned();
        request
    }};
}

fn error_codes() -> Result<()> {
    let id = fresh_id("codes");
    Run {
        command: &["sleep", "1000000"],
        ..Run::default()
    }
    .detach(&id)?;
    let checked = unknown_ids(&id)
        .and_then(|()| running_task(&id))
        .and_then(|()| invalid_requests(&id))
        .and_then(|()| exec_id_in_use(&id))
        .and_then(|()| paused_task(&id));
    remove_detached(&id)?;
    checked
}

/// A process that `Exec` accepts.
fn valid_process() -> String {
    json!({"args": ["true"], "cwd": "/"}).to_string()
}

fn unknown_ids(id: &str) -> Result<()> {
    let unknown = "none";
    let state = with_id!("no-such-task", StateRequest::new());
    expect_error(id, "State", &state, Code::NOT_FOUND)?;
    let mut state = with_id!(id, StateRequest::new());
    state.exec_id = unknown.to_owned();
    expect_error(id, "State", &state, Code::NOT_FOUND)?;
    let mut start = with_id!(id, StartRequest::new());
    start.exec_id = unknown.to_owned();
    expect_error(id, "Start", &start, Code::NOT_FOUND)?;
    let mut delete = with_id!(id, DeleteRequest::new());
    delete.exec_id = unknown.to_owned();
    expect_error(id, "Delete", &delete, Code::NOT_FOUND)?;
    expect_error(id, "Kill", &with_id!(id, kill(unknown, 9)), Code::NOT_FOUND)?;
    let mut close = with_id!(id, CloseIORequest::new());
    close.exec_id = unknown.to_owned();
    close.stdin = true;
    expect_error(id, "CloseIO", &close, Code::NOT_FOUND)
}

fn running_task(id: &str) -> Result<()> {
    let start = with_id!(id, StartRequest::new());
    expect_error(id, "Start", &start, Code::FAILED_PRECONDITION)?;
    let delete = with_id!(id, DeleteRequest::new());
    expect_error(id, "Delete", &delete, Code::FAILED_PRECONDITION)?;
    let resume = with_id!(id, ResumeRequest::new());
    expect_error(id, "Resume", &resume, Code::FAILED_PRECONDITION)
}

fn invalid_requests(id: &str) -> Result<()> {
    expect_error(id, "Kill", &with_id!(id, kill("", 999)), Code::INVALID_ARGUMENT)?;
    for (exec_id, process) in [("x", "no JSON"), ("x", "{}"), ("", "{}")] {
        let request = with_id!(id, exec(exec_id, process));
        expect_error(id, "Exec", &request, Code::INVALID_ARGUMENT)?;
    }
    for resources in ["no JSON", r#"{"pids":{"limit":"many"}}"#] {
        let request = with_id!(id, update(resources));
        expect_error(id, "Update", &request, Code::INVALID_ARGUMENT)?;
    }
    let checkpoint = with_id!(id, CheckpointTaskRequest::new());
    expect_error(id, "Checkpoint", &checkpoint, Code::UNIMPLEMENTED)
}

fn exec_id_in_use(id: &str) -> Result<()> {
    let request = with_id!(id, exec("taken", &valid_process()));
    let added: Result<Empty, ttrpc::Status> = task::call(id, "Exec", &request)?;
    ensure!(added.is_ok(), "Exec failed: {added:?}");
    expect_error(id, "Exec", &request, Code::ALREADY_EXISTS)
}

/// Leaves the task paused.
fn paused_task(id: &str) -> Result<()> {
    let pause = with_id!(id, PauseRequest::new());
    let paused: Result<Empty, ttrpc::Status> = task::call(id, "Pause", &pause)?;
    ensure!(paused.is_ok(), "Pause failed: {paused:?}");
    expect_error(id, "Pause", &pause, Code::FAILED_PRECONDITION)?;
    let request = with_id!(id, exec("y", &valid_process()));
    expect_error(id, "Exec", &request, Code::FAILED_PRECONDITION)
}

fn error_codes_after_exit() -> Result<()> {
    let id = fresh_id("ended");
    Run {
        command: &["true"],
        ..Run::default()
    }
    .detach(&id)?;
    let checked = wait_until_stopped(&id).and_then(|()| {
        let process = valid_process();
        expect_error(
            &id,
            "Exec",
            &with_id!(id, exec("x", &process)),
            Code::FAILED_PRECONDITION,
        )?;
        expect_error(
            &id,
            "Pause",
            &with_id!(id, PauseRequest::new()),
            Code::FAILED_PRECONDITION,
        )?;
        expect_error(
            &id,
            "Resume",
            &with_id!(id, ResumeRequest::new()),
            Code::FAILED_PRECONDITION,
        )?;
        expect_error(&id, "Kill", &with_id!(id, kill("", 9)), Code::NOT_FOUND)?;
        expect_error(
            &id,
            "Update",
            &with_id!(id, update("{}")),
            Code::FAILED_PRECONDITION,
        )
    });
    remove_detached(&id)?;
    checked
}

/// What a client that runs ps(1) on the host gets: the VMM, for each process that was started.
fn pids() -> Result<()> {
    let id = fresh_id("pids");
    Run {
        command: &["sh", "-c", "sleep 1000 & sleep 1000 & wait"],
        ..Run::default()
    }
    .detach(&id)?;
    ctr(["task", "exec", "-d", "--exec-id", "x", &id, "sleep", "1000"])?.success()?;
    let response: Result<PidsResponse, ttrpc::Status> =
        task::call(&id, "Pids", &with_id!(id, PidsRequest::new()))?;
    let vmm = only_process("nacre-vmm")?;
    ctr(["task", "kill", "-s", "SIGKILL", "--exec-id", "x", &id])?.success()?;
    remove_detached(&id)?;
    let response = response.map_err(|status| anyhow::anyhow!("{status:?}"))?;
    let listed: Vec<_> = response
        .processes
        .iter()
        .map(|process| (process.pid, process.info.is_some()))
        .collect();
    ensure!(
        listed == [(vmm, false), (vmm, true)],
        "{listed:?}, and the VMM is {vmm}"
    );
    Ok(())
}

/// Writes 50 MiB to /dev/shm and checks that both the container's cgroup and the metrics count them.
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
    let read_metrics = || -> Result<Value> {
        let text = ctr(["task", "metrics", "--format", "json", &id])?.success()?;
        Ok(serde_json::from_str(&text)?)
    };
    let measured = (|| {
        let before = read_metrics()?;
        let inside = ctr(["task", "exec", "--exec-id", "x", &id, "sh", "-c", script])?.success()?;
        Ok::<_, anyhow::Error>((before, inside, read_metrics()?))
    })();
    remove_detached(&id)?;
    let (before, inside, after) = measured?;
    let usage = |metrics: &Value| metrics["memory"]["usage"].as_u64().unwrap_or_default();
    let current: u64 = inside.lines().next().unwrap_or_default().parse()?;
    ensure!(
        usage(&after) >= usage(&before) + (50 << 20) && usage(&after) < 134_217_728,
        "expected 50 MiB more: {} before, {} after",
        usage(&before),
        usage(&after)
    );
    ensure!(
        current.abs_diff(usage(&after)) < 4 << 20,
        "memory.current is {current}, metrics have {}",
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
