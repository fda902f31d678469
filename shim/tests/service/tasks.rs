//! Terminals, pausing, limits, counters and OOM kills of a task.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api::{
    CheckpointTaskRequest, PauseRequest, ResumeRequest, StatsRequest, UpdateTaskRequest,
};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::TaskClient;
use serde_json::{Value, json};
use ttrpc::Code;

use crate::cases;
use crate::pod::{Pod, refused, soon};
use crate::remote::Remote;
use crate::{Case, LEAKED};

cases![
    a_terminal_has_one_stream_and_a_size,
    an_exec_s_terminal_gets_the_size_it_was_given_early,
    spec_and_call_must_agree_on_the_terminal,
    a_paused_task_is_resumed_or_killed,
    a_task_that_can_t_be_paused_keeps_running,
    limits_change_and_counters_are_returned,
    an_update_of_cpus_is_for_the_vm,
    an_oom_kill_is_reported_once_and_before_the_exit,
    inherited_descriptors_reach_neither_the_shim_nor_its_hooks,
    a_checkpoint_is_refused,
    a_client_may_close_its_connection_after_shutdown,
];

async fn pause(client: &TaskClient, id: &str) -> ttrpc::Result<()> {
    let request = PauseRequest {
        id: id.into(),
        ..Default::default()
    };
    client.pause(soon(), &request).await.map(drop)
}

async fn resume(client: &TaskClient, id: &str) -> ttrpc::Result<()> {
    let request = ResumeRequest {
        id: id.into(),
        ..Default::default()
    };
    client.resume(soon(), &request).await.map(drop)
}

async fn a_terminal_has_one_stream_and_a_size() -> Result<()> {
    let mut pod = Pod::prepare("tty", "", |spec| {
        spec["process"] = json!({"args": ["size", "81"], "cwd": "/", "terminal": true});
    })
    .await?;
    let client = pod.run_start().await?;
    let mut creation = pod.creation();
    creation.terminal = true;
    let out = pod.path().join("out");
    creation.stdout = format!("file://{}", out.display());
    // A process with a terminal has no separate standard error, so the shim must not open it.
    creation.stderr = "/no/such/fifo".into();
    client.create(soon(), &creation).await?;
    let init = Remote::init(&client, "tty");
    ensure!(init.state().await?.terminal);
    init.resize(80, 24).await?;
    init.start().await?;
    init.resize(81, 25).await?;
    ensure!(init.wait().await?.exit_status == 0);
    let (code, _) = refused(init.resize(82, 26).await)?;
    ensure!(code == Code::FAILED_PRECONDITION, "{code:?}");
    init.delete().await?;
    ensure!(std::fs::read_to_string(out)? == "81x25");
    pod.finish(client).await
}

async fn an_exec_s_terminal_gets_the_size_it_was_given_early() -> Result<()> {
    let (pod, client) = Pod::start("tty-exec", "", &["sleep"]).await?;
    client.create(soon(), &pod.creation()).await?;
    let init = Remote::init(&client, "tty-exec");
    init.start().await?;
    // As under runc, a process without a terminal takes any size.
    init.resize(80, 24).await?;
    let exec = Remote::exec(&client, "tty-exec", "e");
    let mut request = exec.request(&["size", "99"]);
    let out = pod.path().join("out");
    request.terminal = true;
    request.stdout = format!("file://{}", out.display());
    exec.add(&request).await?;
    exec.resize(99, 33).await?;
    ensure!(refused(exec.resize(65_536, 33).await)?.0 == Code::INVALID_ARGUMENT);
    exec.start().await?;
    ensure!(exec.wait().await?.exit_status == 0);
    exec.delete().await?;
    ensure!(std::fs::read_to_string(out)? == "99x33");
    init.kill(9).await?;
    init.wait().await?;
    init.delete().await?;
    pod.finish(client).await
}

async fn spec_and_call_must_agree_on_the_terminal() -> Result<()> {
    for (name, spec_s, call_s) in [("tty-no", true, false), ("tty-yes", false, true)] {
        let mut pod = Pod::prepare(name, "", |spec| spec["process"]["terminal"] = json!(spec_s)).await?;
        let client = pod.run_start().await?;
        let mut creation = pod.creation();
        creation.terminal = call_s;
        let (code, message) = refused(client.create(soon(), &creation).await)?;
        ensure!(
            code == Code::INVALID_ARGUMENT && message.contains("process.terminal"),
            "{code:?} {message}"
        );
        pod.finish(client).await?;
    }
    Ok(())
}

async fn a_paused_task_is_resumed_or_killed() -> Result<()> {
    let (mut pod, client) = Pod::start("pause", "", &["sleep"]).await?;
    client.create(soon(), &pod.creation()).await?;
    let init = Remote::init(&client, "pause");
    init.start().await?;
    let exec = Remote::exec(&client, "pause", "e");
    exec.run(&["sleep"]).await?;
    pause(&client, "pause").await?;
    for process in [&init, &exec] {
        ensure!(process.state().await?.status.value() == 4, "not paused");
    }
    let other = Remote::exec(&client, "pause", "other");
    for (call, refusal) in [
        ("Pause", refused(pause(&client, "pause").await)?),
        ("Exec", refused(other.add(&other.request(&["a"])).await)?),
        ("Delete", refused(init.delete().await)?),
        ("Start", refused(init.start().await)?),
    ] {
        ensure!(refusal.0 == Code::FAILED_PRECONDITION, "{call}: {refusal:?}");
    }
    resume(&client, "pause").await?;
    ensure!(init.state().await?.status.value() == 2, "not running");
    ensure!(refused(resume(&client, "pause").await)?.0 == Code::FAILED_PRECONDITION);
    pause(&client, "pause").await?;
    init.kill(9).await?;
    ensure!(init.wait().await?.exit_status == 137);
    ensure!(init.state().await?.status.value() == 3, "not stopped");
    ensure!(refused(resume(&client, "pause").await)?.0 == Code::FAILED_PRECONDITION);
    init.delete().await?;
    pod.finish(client).await?;
    let events = pod.events_until("delete").await?;
    let want = ["paused", "resumed", "paused", "exit e 137", "exit 137", "delete"];
    ensure!(events[4..] == want, "{events:?}");
    Ok(())
}

async fn a_task_that_can_t_be_paused_keeps_running() -> Result<()> {
    let (pod, client) = Pod::start("no-pause", "", &["sleep", "unstoppable"]).await?;
    client.create(soon(), &pod.creation()).await?;
    let init = Remote::init(&client, "no-pause");
    init.start().await?;
    let (code, message) = refused(pause(&client, "no-pause").await)?;
    ensure!(
        code == Code::INTERNAL && message.contains("cgroup.freeze"),
        "{message}"
    );
    ensure!(init.state().await?.status.value() == 2, "not running");
    init.kill(15).await?;
    ensure!(init.wait().await?.exit_status == 143);
    init.delete().await?;
    pod.finish(client).await
}

pub async fn update(client: &TaskClient, id: &str, resources: &Value) -> ttrpc::Result<()> {
    let any = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
        value: resources.to_string().into_bytes(),
        ..Default::default()
    };
    let request = UpdateTaskRequest {
        id: id.into(),
        resources: Some(any).into(),
        annotations: [("ignored".to_owned(), "yes".to_owned())].into(),
        ..Default::default()
    };
    client.update(soon(), &request).await.map(drop)
}

pub async fn stats(client: &TaskClient, id: &str) -> ttrpc::Result<Any> {
    let request = StatsRequest {
        id: id.into(),
        ..Default::default()
    };
    let answer = client.stats(soon(), &request).await?;
    Ok(answer.stats.into_option().unwrap_or_default())
}

async fn limits_change_and_counters_are_returned() -> Result<()> {
    let (pod, client) = Pod::start("limits", "", &["sleep"]).await?;
    client.create(soon(), &pod.creation()).await?;
    let init = Remote::init(&client, "limits");
    let any = stats(&client, "limits").await?;
    ensure!(any.type_url == "io.containerd.cgroups.v2.Metrics", "{any:?}");
    let metrics = Metrics::parse_from_bytes(&any.value)?;
    ensure!(
        metrics.pids.current == 3 && metrics.pids.limit == u64::MAX,
        "{metrics:?}"
    );
    ensure!(
        metrics.memory.usage == 4096 && metrics.cpu.usage_usec == 5,
        "{metrics:?}"
    );
    init.start().await?;
    update(&client, "limits", &json!({"pids": {"limit": 55}})).await?;
    let metrics = Metrics::parse_from_bytes(&stats(&client, "limits").await?.value)?;
    ensure!(metrics.pids.limit == 55, "{metrics:?}");
    for bad in [json!([]), json!({"pids": {}})] {
        let (code, message) = refused(update(&client, "limits", &bad).await)?;
        ensure!(
            code == Code::INVALID_ARGUMENT && message.contains("resources"),
            "{message}"
        );
    }
    init.kill(9).await?;
    init.wait().await?;
    init.delete().await?;
    pod.finish(client).await
}

/// The fake agent gets the rest of the update.
async fn an_update_of_cpus_is_for_the_vm() -> Result<()> {
    let (pod, client) = Pod::start("cpus", "", &["sleep"]).await?;
    let vmm = client.create(soon(), &pod.creation()).await?.pid;
    let init = Remote::init(&client, "cpus");
    init.start().await?;
    let cpus = || -> Result<BTreeSet<String>> {
        let mut seen = BTreeSet::new();
        for task in std::fs::read_dir(format!("/proc/{vmm}/task"))? {
            let status = std::fs::read_to_string(task?.path().join("status"))?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            seen.insert(line.context("no CPUs")?.trim().to_owned());
        }
        Ok(seen)
    };
    update(
        &client,
        "cpus",
        &json!({"cpu": {"cpus": "0"}, "pids": {"limit": 5}}),
    )
    .await?;
    ensure!(cpus()? == BTreeSet::from(["0".to_owned()]), "{:?}", cpus()?);
    let (code, message) = refused(update(&client, "cpus", &json!({"cpu": {"cpus": "1023"}})).await)?;
    ensure!(
        code == Code::INVALID_ARGUMENT && message.contains("linux.resources.cpu.cpus"),
        "{code:?} {message}"
    );
    ensure!(cpus()? == BTreeSet::from(["0".to_owned()]), "{:?}", cpus()?);
    init.kill(9).await?;
    init.wait().await?;
    init.delete().await?;
    pod.finish(client).await
}

async fn an_oom_kill_is_reported_once_and_before_the_exit() -> Result<()> {
    let (mut pod, client) = Pod::start("oom", "", &["oom", "live"]).await?;
    client.create(soon(), &pod.creation()).await?;
    let init = Remote::init(&client, "oom");
    init.start().await?;
    pod.events_until("oom").await?;
    let exec = Remote::exec(&client, "oom", "e");
    exec.run(&["oom", "die"]).await?;
    ensure!(exec.wait().await?.exit_status == 137);
    init.kill(9).await?;
    init.wait().await?;
    init.delete().await?;
    pod.finish(client).await?;
    let events = pod.events_until("delete").await?;
    // The guest reports the kill twice: by WaitOom, perhaps before its answer to StartExec, and with the
    // exit.
    ensure!(
        events.iter().filter(|event| *event == "oom").count() == 1,
        "{events:?}"
    );
    let position = |wanted: &str| events.iter().position(|event| event == wanted);
    ensure!(position("oom") < position("exit e 137"), "{events:?}");

    let (mut pod, client) = Pod::start("oom-init", "", &["oom", "die"]).await?;
    client.create(soon(), &pod.creation()).await?;
    let init = Remote::init(&client, "oom-init");
    init.start().await?;
    ensure!(init.wait().await?.exit_status == 137);
    init.delete().await?;
    pod.finish(client).await?;
    let mut events = pod.events_until("delete").await?;
    // The OOM event may come before the answer to Start.
    events.retain(|event| event != "start");
    ensure!(events == ["create", "oom", "exit 137", "delete"], "{events:?}");
    Ok(())
}

async fn inherited_descriptors_reach_neither_the_shim_nor_its_hooks() -> Result<()> {
    let mut pod = Pod::prepare("leaked", "", |spec| {
        let script = "exec > files; for fd in /proc/$$/fd/*; do readlink $fd; done; true";
        spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    })
    .await?;
    let client = pod.run_start().await?;
    client.create(soon(), &pod.creation()).await?;
    let shim = pod.recorded()?.shim_pid;
    let mut open = Vec::new();
    for fd in std::fs::read_dir(format!("/proc/{shim}/fd"))? {
        // Fails for one that was closed meanwhile.
        open.extend(std::fs::read_link(fd?.path()).ok());
    }
    ensure!(
        !open.is_empty() && !open.iter().any(|file| file == Path::new(LEAKED)),
        "{open:?}"
    );
    let files = std::fs::read_to_string(pod.path().join("bundle/files"))?;
    ensure!(
        files.lines().count() >= 3 && !files.lines().any(|file| file == LEAKED),
        "{files}"
    );
    pod.delete(&client).await?;
    pod.finish(client).await
}

async fn a_checkpoint_is_refused() -> Result<()> {
    let (pod, client) = Pod::start("checkpoint", "", &["sleep"]).await?;
    client.create(soon(), &pod.creation()).await?;
    let request = CheckpointTaskRequest {
        id: "checkpoint".into(),
        ..Default::default()
    };
    let (code, message) = refused(client.checkpoint(soon(), &request).await)?;
    ensure!(
        code == Code::UNIMPLEMENTED && message.contains("Checkpoint"),
        "{message}"
    );
    pod.delete(&client).await?;
    pod.finish(client).await
}

/// containerd's client loses an answer if the shim closes the connection right after it.
async fn a_client_may_close_its_connection_after_shutdown() -> Result<()> {
    let (pod, client) = Pod::start("close", "", &["sleep"]).await?;
    client.create(soon(), &pod.creation()).await?;
    pod.delete(&client).await?;
    let address = pod.address.strip_prefix("unix://").context("no Unix socket")?;
    let mut other = std::os::unix::net::UnixStream::connect(address)?;
    other.set_read_timeout(Some(Duration::from_secs(20)))?;
    let begun = Instant::now();
    pod.finish(client).await?;
    // The shim has ended: this client did not close its connection.
    ensure!(other.read(&mut [0])? == 0);
    let open = begun.elapsed();
    ensure!(open >= Duration::from_secs(1), "closed after {open:?}");
    Ok(())
}
