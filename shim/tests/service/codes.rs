//! Every call in every state of a task and of a process beside its init: success, or the code that containerd acts on.
//! The columns are states, each made in a pod of its own for the row's call.

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api::{
    PauseRequest, PidsRequest, ResumeRequest, StatsRequest, UpdateTaskRequest,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::TaskClient;
use ttrpc::Code;

use crate::Case;
use crate::cases;
use crate::pod::{Pod, soon};
use crate::remote::Remote;

cases![every_call_in_every_state, wrong_execs_are_refused];

const OK: Code = Code::OK;
const NONE: Code = Code::NOT_FOUND;
const PRE: Code = Code::FAILED_PRECONDITION;
const EXISTS: Code = Code::ALREADY_EXISTS;

/// Where a task stands.
const TASK_STATES: [&str; 5] = ["none", "created", "running", "paused", "stopped"];

/// Calls of the task.
const TASK: [(&str, [Code; 5]); 15] = [
    //                none created running paused stopped
    ("create", [OK, EXISTS, EXISTS, EXISTS, EXISTS]),
    ("start", [NONE, OK, PRE, PRE, PRE]),
    ("state", [NONE, OK, OK, OK, OK]),
    ("kill", [NONE, OK, OK, OK, NONE]),
    ("wait", [NONE, OK, OK, OK, OK]),
    ("delete", [NONE, OK, PRE, PRE, OK]),
    ("closeio", [NONE, OK, OK, OK, OK]),
    ("resize", [NONE, OK, OK, OK, OK]),
    ("pids", [NONE, OK, OK, OK, OK]),
    ("pause", [NONE, PRE, OK, PRE, PRE]),
    ("resume", [NONE, PRE, PRE, OK, PRE]),
    ("update", [NONE, OK, OK, OK, PRE]),
    ("stats", [NONE, OK, OK, OK, NONE]),
    ("exec", [NONE, OK, OK, PRE, PRE]),
    ("connect", [OK, OK, OK, OK, OK]),
];

/// Where a process beside init stands.
const EXEC_STATES: [&str; 6] = ["none", "added", "running", "exited", "never ran", "orphaned"];

/// Calls of such a process; "orphaned": it was never started, and init has ended.
const EXEC: [(&str, [Code; 6]); 8] = [
    //             none added running exited never-ran orphaned
    ("add", [OK, EXISTS, EXISTS, EXISTS, EXISTS, EXISTS]),
    ("start", [NONE, OK, PRE, PRE, PRE, PRE]),
    ("state", [NONE, OK, OK, OK, OK, OK]),
    ("kill", [NONE, PRE, OK, NONE, NONE, PRE]),
    ("wait", [NONE, OK, OK, OK, OK, OK]),
    ("delete", [NONE, OK, PRE, OK, OK, OK]),
    ("closeio", [NONE, OK, OK, OK, OK, OK]),
    ("resize", [NONE, OK, OK, OK, OK, OK]),
];

fn code<T>(answer: ttrpc::Result<T>) -> Code {
    match answer {
        Ok(_) => Code::OK,
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        Err(error) => panic!("{error}"),
    }
}

/// Waits are begun only: most never end here.
async fn begin<T>(wait: impl Future<Output = ttrpc::Result<T>>) -> Code {
    let moment = std::time::Duration::from_millis(50);
    tokio::time::timeout(moment, wait).await.map_or(Code::OK, code)
}

async fn call_task(pod: &Pod, client: &TaskClient, call: &str) -> Code {
    let init = Remote::init(client, &pod.id);
    let id = pod.id.clone();
    match call {
        "create" => code(client.create(soon(), &pod.creation()).await),
        "pids" => code(
            client
                .pids(
                    soon(),
                    &PidsRequest {
                        id,
                        ..Default::default()
                    },
                )
                .await,
        ),
        "pause" => code(
            client
                .pause(
                    soon(),
                    &PauseRequest {
                        id,
                        ..Default::default()
                    },
                )
                .await,
        ),
        "resume" => code(
            client
                .resume(
                    soon(),
                    &ResumeRequest {
                        id,
                        ..Default::default()
                    },
                )
                .await,
        ),
        "stats" => code(
            client
                .stats(
                    soon(),
                    &StatsRequest {
                        id,
                        ..Default::default()
                    },
                )
                .await,
        ),
        "connect" => {
            let request = containerd_shim_protos::api::ConnectRequest {
                id,
                ..Default::default()
            };
            code(client.connect(soon(), &request).await)
        }
        "update" => {
            let resources = Any {
                value: br#"{"pids":{"limit":5}}"#.to_vec(),
                ..Default::default()
            };
            let request = UpdateTaskRequest {
                id,
                resources: Some(resources).into(),
                ..Default::default()
            };
            code(client.update(soon(), &request).await)
        }
        "exec" => {
            let exec = Remote::exec(client, &pod.id, "e");
            code(exec.add(&exec.request(&["sleep"])).await)
        }
        call => call_process(&init, call).await,
    }
}

async fn call_process(process: &Remote, call: &str) -> Code {
    match call {
        "add" => code(process.add(&process.request(&["sleep"])).await),
        "start" => code(process.start().await),
        "state" => code(process.state().await),
        "kill" => code(process.kill(9).await),
        "wait" => begin(process.wait()).await,
        "delete" => code(process.delete().await),
        "closeio" => code(process.close_stdin().await),
        "resize" => code(process.resize(80, 24).await),
        call => panic!("{call}"),
    }
}

async fn bring_task(pod: &Pod, client: &TaskClient, state: &str) -> Result<()> {
    let init = Remote::init(client, &pod.id);
    if state == "none" {
        return Ok(());
    }
    client.create(soon(), &pod.creation()).await?;
    if state == "created" {
        return Ok(());
    }
    init.start().await?;
    match state {
        "running" => {}
        "paused" => ensure!(call_task(pod, client, "pause").await == OK),
        _ => {
            init.kill(9).await?;
            init.wait().await?;
        }
    }
    Ok(())
}

/// An exec of `pod`'s running init, in `state`.
async fn bring_exec(pod: &Pod, client: &TaskClient, state: &str) -> Result<Remote> {
    let exec = Remote::exec(client, &pod.id, &state.replace(' ', "-"));
    if state == "none" {
        return Ok(exec);
    }
    let words: &[&str] = match state {
        "never ran" => &["no-such-command"],
        "exited" => &["exit", "0"],
        _ => &["sleep"],
    };
    exec.add(&exec.request(words)).await?;
    match state {
        "added" => {}
        "orphaned" => {
            let init = Remote::init(client, &pod.id);
            init.kill(9).await?;
            init.wait().await?;
        }
        "never ran" => ensure!(exec.start().await.is_err()),
        state => {
            exec.start().await?;
            if state == "exited" {
                exec.wait().await?;
            }
        }
    }
    Ok(exec)
}

/// Whatever state the pod's task is in, it goes.
async fn end(pod: &Pod, client: &TaskClient) -> Result<()> {
    let init = Remote::init(client, &pod.id);
    // It may have ended, or be gone.
    drop(init.kill(9).await);
    drop(init.wait().await);
    drop(init.delete().await);
    pod.finish(client).await
}

async fn every_call_in_every_state() -> Result<()> {
    for (call, wants) in TASK {
        for (state, want) in TASK_STATES.into_iter().zip(wants) {
            let check = async {
                let id = format!("{call}-{state}");
                let (pod, client) = Pod::start(&id, "", &["sleep"]).await?;
                bring_task(&pod, &client, state).await?;
                let got = call_task(&pod, &client, call).await;
                ensure!(got == want, "{got:?}, not {want:?}");
                end(&pod, &client).await
            };
            check
                .await
                .with_context(|| format!("{call} of a task that is {state}"))?;
        }
    }
    for (call, wants) in EXEC {
        let (pod, client) = Pod::start(&format!("exec-{call}"), "", &["sleep"]).await?;
        client.create(soon(), &pod.creation()).await?;
        Remote::init(&client, &pod.id).start().await?;
        for (state, want) in EXEC_STATES.into_iter().zip(wants) {
            let check = async {
                let exec = bring_exec(&pod, &client, state).await?;
                let got = call_process(&exec, call).await;
                ensure!(got == want, "{got:?}, not {want:?}");
                Ok(())
            };
            let checked: Result<()> = check.await;
            checked.with_context(|| format!("{call} of an exec that is {state}"))?;
        }
        end(&pod, &client).await?;
    }
    Ok(())
}

async fn wrong_execs_are_refused() -> Result<()> {
    let (pod, client) = Pod::start("wrong-exec", "", &["sleep"]).await?;
    bring_task(&pod, &client, "running").await?;
    let nameless = Remote::exec(&client, &pod.id, "");
    ensure!(code(nameless.add(&nameless.request(&["a"])).await) == Code::INVALID_ARGUMENT);
    let exec = Remote::exec(&client, &pod.id, "e");
    for bad in [&b""[..], b"[]", b"{", b"\xff\xff", b"null"] {
        let mut request = exec.request(&["a"]);
        request.spec = Some(Any {
            value: bad.to_vec(),
            ..Default::default()
        })
        .into();
        ensure!(
            code(exec.add(&request).await) == Code::INVALID_ARGUMENT,
            "{bad:?}"
        );
    }
    let mut request = exec.request(&["a"]);
    request.stdout = "/no/such/fifo".into();
    ensure!(code(exec.add(&request).await) == Code::UNKNOWN);
    // None of them took the name.
    exec.run(&["exit", "0"]).await?;
    exec.wait().await?;
    exec.delete().await?;
    end(&pod, &client).await
}
