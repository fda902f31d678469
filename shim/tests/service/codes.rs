//! The status code of every call in every state of a task and of an exec process. Each field of the tables is
//! one test: a pod is brought into the column's state, then the row's call is made.

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api::{
    ConnectRequest, PauseRequest, PidsRequest, ResumeRequest, StatsRequest, UpdateTaskRequest,
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
const NOT_FOUND: Code = Code::NOT_FOUND;
const PRE: Code = Code::FAILED_PRECONDITION;
const EXISTS: Code = Code::ALREADY_EXISTS;

/// The states of a task.
const TASK_STATES: [&str; 9] = [
    "none", "creating", "created", "starting", "running", "pausing", "paused", "stopped", "VM gone",
];

/// The code of each call of a task, in the order of [`TASK_STATES`].
#[rustfmt::skip]
const TASK: [(&str, [Code; 9]); 15] = [
    //          none       creating created starting running pausing paused  stopped    VM gone
    ("create",  [OK,        EXISTS,  EXISTS, EXISTS, EXISTS, EXISTS, EXISTS, EXISTS,    EXISTS]),
    ("start",   [NOT_FOUND, PRE,     OK,     PRE,    PRE,    PRE,    PRE,    PRE,       PRE]),
    ("state",   [NOT_FOUND, OK,      OK,     OK,     OK,     OK,     OK,     OK,        OK]),
    ("kill",    [NOT_FOUND, PRE,     OK,     OK,     OK,     OK,     OK,     NOT_FOUND, NOT_FOUND]),
    ("wait",    [NOT_FOUND, OK,      OK,     OK,     OK,     OK,     OK,     OK,        OK]),
    ("delete",  [NOT_FOUND, OK,      OK,     PRE,    PRE,    PRE,    PRE,    OK,        OK]),
    ("closeio", [NOT_FOUND, OK,      OK,     OK,     OK,     OK,     OK,     OK,        OK]),
    ("resize",  [NOT_FOUND, OK,      OK,     OK,     OK,     OK,     OK,     OK,        OK]),
    ("pids",    [NOT_FOUND, OK,      OK,     OK,     OK,     OK,     OK,     OK,        OK]),
    ("pause",   [NOT_FOUND, PRE,     PRE,    PRE,    OK,     PRE,    PRE,    PRE,       PRE]),
    ("resume",  [NOT_FOUND, PRE,     PRE,    PRE,    PRE,    PRE,    OK,     PRE,       PRE]),
    ("update",  [NOT_FOUND, PRE,     OK,     OK,     OK,     OK,     OK,     PRE,       PRE]),
    ("stats",   [NOT_FOUND, PRE,     OK,     OK,     OK,     OK,     OK,     NOT_FOUND, NOT_FOUND]),
    ("exec",    [NOT_FOUND, PRE,     OK,     OK,     OK,     PRE,    PRE,    PRE,       PRE]),
    ("connect", [OK,        OK,      OK,     OK,     OK,     OK,     OK,     OK,        OK]),
];

/// The states of an exec process. "orphaned": it was never started, and init has exited.
const EXEC_STATES: [&str; 6] = ["none", "added", "running", "exited", "never ran", "orphaned"];

/// The code of each call of an exec process, in the order of [`EXEC_STATES`].
#[rustfmt::skip]
const EXEC: [(&str, [Code; 6]); 8] = [
    //          none       added   running exited     never-ran  orphaned
    ("add",     [OK,        EXISTS, EXISTS, EXISTS,    EXISTS,    EXISTS]),
    ("start",   [NOT_FOUND, OK,     PRE,    PRE,       PRE,       PRE]),
    ("state",   [NOT_FOUND, OK,     OK,     OK,        OK,        OK]),
    ("kill",    [NOT_FOUND, PRE,    OK,     NOT_FOUND, NOT_FOUND, PRE]),
    ("wait",    [NOT_FOUND, OK,     OK,     OK,        OK,        OK]),
    ("delete",  [NOT_FOUND, OK,     PRE,    OK,        OK,        OK]),
    ("closeio", [NOT_FOUND, OK,     OK,     OK,        OK,        OK]),
    ("resize",  [NOT_FOUND, OK,     OK,     OK,        OK,        OK]),
];

fn code<T>(answer: ttrpc::Result<T>) -> Code {
    match answer {
        Ok(_) => Code::OK,
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        Err(error) => panic!("{error}"),
    }
}

/// The code of a call that may not be answered at all in this state: OK if it is not within 50 ms.
async fn begin<T>(wait: impl Future<Output = ttrpc::Result<T>>) -> Code {
    let moment = std::time::Duration::from_millis(50);
    tokio::time::timeout(moment, wait).await.map_or(Code::OK, code)
}

/// Builds a request that has only the id of a container.
macro_rules! request {
    ($kind:ident, $id:expr) => {
        &$kind {
            id: $id,
            ..Default::default()
        }
    };
}

async fn call_task(pod: &Pod, client: &TaskClient, call: &str) -> Code {
    let init = Remote::init(client, &pod.id);
    let id = pod.id.clone();
    match call {
        "create" => code(client.create(soon(), &pod.creation()).await),
        "pids" => code(client.pids(soon(), request!(PidsRequest, id)).await),
        "pause" => code(client.pause(soon(), request!(PauseRequest, id)).await),
        "resume" => code(client.resume(soon(), request!(ResumeRequest, id)).await),
        "stats" => code(client.stats(soon(), request!(StatsRequest, id)).await),
        "connect" => code(client.connect(soon(), request!(ConnectRequest, id)).await),
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

/// A pod whose task is in `state`.
async fn bring_task(id: &str, state: &str) -> Result<(Pod, TaskClient)> {
    let config = if state == "creating" {
        "kernel_params = \"fake=silent\"\n"
    } else {
        ""
    };
    let arguments: &[&str] = match state {
        "starting" => &["hold-start"],
        "pausing" => &["sleep", "hold-pause"],
        _ => &["sleep"],
    };
    let (pod, client) = Pod::start(id, config, arguments).await?;
    let init = Remote::init(&client, id);
    if state == "none" {
        return Ok((pod, client));
    }
    if state == "creating" {
        let (creation, creating) = (pod.creation(), client.clone());
        in_background(&init, async move { creating.create(soon(), &creation).await }).await;
        return Ok((pod, client));
    }
    let vmm = client.create(soon(), &pod.creation()).await?.pid;
    match state {
        "created" => return Ok((pod, client)),
        "starting" => {
            let starting = init.clone();
            in_background(&init, async move { starting.start().await }).await;
            return Ok((pod, client));
        }
        _ => drop(init.start().await?),
    }
    match state {
        "running" => {}
        "pausing" => {
            let (id, pausing) = (id.to_owned(), client.clone());
            in_background(&init, async move {
                pausing.pause(soon(), request!(PauseRequest, id)).await
            })
            .await;
        }
        "paused" => ensure!(call_task(&pod, &client, "pause").await == OK),
        "VM gone" => {
            let vmm = nix::unistd::Pid::from_raw(i32::try_from(vmm)?);
            nix::sys::signal::kill(vmm, nix::sys::signal::Signal::SIGKILL)?;
            init.wait().await?;
            pod.failure()?;
        }
        "stopped" => {
            init.kill(9).await?;
            init.wait().await?;
        }
        state => panic!("{state}"),
    }
    Ok((pod, client))
}

/// Makes a call that is not answered for now. The sandbox has received it when this returns: the shim handles
/// the calls of a connection in order.
async fn in_background<T: Send + 'static>(init: &Remote, call: impl Future<Output = T> + Send + 'static) {
    let _unanswered = tokio::spawn(call);
    // While this call waits for its answer, the one above is sent; then a second answer shows that it was
    // handled.
    for _ in 0..2 {
        drop(init.state().await);
    }
}

/// An exec of `pod`'s running init, in `state`.
async fn bring_exec(pod: &Pod, client: &TaskClient, state: &str) -> Result<Remote> {
    let exec = Remote::exec(client, &pod.id, &state.replace(' ', "-"));
    if state == "none" {
        return Ok(exec);
    }
    let arguments: &[&str] = match state {
        "never ran" => &["no-such-command"],
        "exited" => &["exit", "0"],
        _ => &["sleep"],
    };
    exec.add(&exec.request(arguments)).await?;
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

/// Ends the pod, whatever state its task is in.
async fn end(pod: &Pod, client: TaskClient) -> Result<()> {
    let init = Remote::init(&client, &pod.id);
    // Each of these is refused in some states. Delete alone ends a task that is being created.
    drop(init.kill(9).await);
    if init.delete().await.is_err() {
        drop(init.wait().await);
        drop(init.delete().await);
    }
    drop(init);
    pod.finish(client).await
}

async fn every_call_in_every_state() -> Result<()> {
    for (call, wants) in TASK {
        for (state, want) in TASK_STATES.into_iter().zip(wants) {
            let check = async {
                let id = format!("{call}-{}", state.replace(' ', "-"));
                let (pod, client) = bring_task(&id, state).await?;
                let got = call_task(&pod, &client, call).await;
                ensure!(got == want, "expected {want:?}, got {got:?}");
                end(&pod, client).await
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
                ensure!(got == want, "expected {want:?}, got {got:?}");
                Ok(())
            };
            let checked: Result<()> = check.await;
            checked.with_context(|| format!("{call} of an exec that is {state}"))?;
        }
        end(&pod, client).await?;
    }
    Ok(())
}

async fn wrong_execs_are_refused() -> Result<()> {
    let (pod, client) = bring_task("wrong-exec", "running").await?;
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
    // The refused calls have left the exec id free.
    exec.run(&["exit", "0"]).await?;
    exec.wait().await?;
    exec.delete().await?;
    end(&pod, client).await
}
