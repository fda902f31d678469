//! The Sandbox API: a pod from its first call to the last, and the code of each call in each state of the pod.

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api::{ConnectRequest, ShutdownRequest, StatsRequest};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, PingRequest, PlatformRequest, SandboxMetricsRequest, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, StartSandboxRequest, StopSandboxRequest,
    UpdateSandboxRequest, WaitSandboxRequest,
};
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::TaskClient;
use ttrpc::Code;
use ttrpc::asynchronous::Client;

use crate::Case;
use crate::cases;
use crate::pod::{Pod, pidfd, refused, soon, wait_end};
use crate::remote::Remote;

cases![
    a_sandbox_lives_until_it_is_shut_down,
    every_call_of_a_sandbox_in_every_state,
    containers_come_and_go_in_a_sandbox,
    a_sandbox_whose_vm_dies_is_reported,
    a_sandbox_is_resized_once_its_guest_has_booted,
    delete_ends_a_sandbox_that_was_never_created,
    streaming_is_refused_with_what_to_do,
];

/// Builds a request that has only the sandbox's id.
macro_rules! of {
    ($kind:ident, $id:expr) => {
        &$kind {
            sandbox_id: $id.to_owned(),
            ..Default::default()
        }
    };
}

/// A pod whose bundle has no config.json, as with `sandboxer = "shim"`; `start` was run.
struct Sandbox {
    pod: Pod,
    tasks: TaskClient,
    api: SandboxClient,
    raw: Client,
}

impl Sandbox {
    async fn start(id: &str) -> Result<Self> {
        Self::start_with(id, "").await
    }

    /// As [`Sandbox::start`], with `config` as config.toml.
    async fn start_with(id: &str, config: &str) -> Result<Self> {
        let mut pod = Pod::prepare(id, config, |_| {}).await?;
        let bundle = pod.path().join("bundle");
        std::fs::create_dir(pod.path().join("inner"))?;
        std::fs::rename(bundle.join("config.json"), pod.path().join("inner/config.json"))?;
        let tasks = pod.run_start().await?;
        let raw = Client::connect(&pod.address).await?;
        let api = SandboxClient::new(raw.clone());
        // When it answers, it has recorded itself.
        api.ping_sandbox(soon(), of!(PingRequest, id)).await?;
        Ok(Self { pod, tasks, api, raw })
    }

    fn creation(&self) -> CreateSandboxRequest {
        CreateSandboxRequest {
            sandbox_id: self.pod.id.clone(),
            bundle_path: self.pod.path().join("bundle").display().to_string(),
            options: Some(config(&self.pod.id)).into(),
            ..Default::default()
        }
    }

    async fn status(&self) -> Result<SandboxStatusResponse> {
        let request = of!(SandboxStatusRequest, self.pod.id);
        Ok(self.api.sandbox_status(soon(), request).await?)
    }

    /// Calls UpdateSandbox, which the client's crate does not have, with `fields` besides the sandbox's id.
    async fn update(&self, id: &str, fields: &[u8]) -> ttrpc::Result<()> {
        let mut payload = of!(UpdateSandboxRequest, id).write_to_bytes().unwrap();
        payload.extend(fields);
        let request = ttrpc::Request {
            service: "containerd.runtime.sandbox.v1.Sandbox".into(),
            method: "UpdateSandbox".into(),
            timeout_nano: 20_000_000_000,
            payload,
            ..Default::default()
        };
        self.raw.request(request).await?;
        Ok(())
    }

    async fn resize(&self, id: &str) -> ttrpc::Result<()> {
        self.update(id, &resize_to_256_mib()).await
    }

    /// Makes `call` for sandbox `id`; the code of its answer.
    async fn code(&self, call: &str, id: &str) -> Code {
        let api = &self.api;
        match call {
            "create" => {
                let mut request = self.creation();
                request.sandbox_id = id.to_owned();
                code(api.create_sandbox(soon(), &request).await)
            }
            "start" => code(api.start_sandbox(soon(), of!(StartSandboxRequest, id)).await),
            "platform" => code(api.platform(soon(), of!(PlatformRequest, id)).await),
            "status" => code(api.sandbox_status(soon(), of!(SandboxStatusRequest, id)).await),
            "ping" => code(api.ping_sandbox(soon(), of!(PingRequest, id)).await),
            "metrics" => code(api.sandbox_metrics(soon(), of!(SandboxMetricsRequest, id)).await),
            "update" => code(self.update(id, &[]).await),
            "resize" => code(self.resize(id).await),
            "wait" => {
                let moment = std::time::Duration::from_millis(50);
                let request = of!(WaitSandboxRequest, id);
                let waiting = api.wait_sandbox(soon(), request);
                let answered = tokio::time::timeout(moment, waiting).await;
                answered.map_or(Code::OK, code)
            }
            "stop" => code(api.stop_sandbox(soon(), of!(StopSandboxRequest, id)).await),
            call => panic!("{call}"),
        }
    }

    /// Ends sandbox and shim, and checks that nothing is left.
    async fn finish(self) -> Result<()> {
        let Self { pod, api, raw, tasks } = self;
        let ended = pidfd(pod.recorded()?.shim_pid)?;
        let request = of!(ShutdownSandboxRequest, pod.id);
        api.shutdown_sandbox(soon(), request).await?;
        drop((api, raw, tasks));
        wait_end(ended).await.context("the shim does not end")?;
        pod.nothing_left()
    }
}

/// Field `number` of a message, as it is on the wire. `content` has less than 128 bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(length < 128);
    [&[number << 3 | 2, length], content].concat()
}

/// CRI's resize of a pod: an extension (field 7) of the sandbox (field 4).
fn resize_to_256_mib() -> Vec<u8> {
    let value = br#"{"Resources":{"memory_limit_in_bytes":268435456}}"#;
    let any = [
        field(1, b"io.containerd.cri.v1/UpdatedResources"),
        field(2, value),
    ]
    .concat();
    let entry = [field(1, b"updated-resources"), field(2, &any)].concat();
    field(4, &field(7, &entry))
}

/// CRI's configuration with a host name (field 2) and a cgroup parent (field 1 of field 8), as it is on the wire.
fn config(id: &str) -> Any {
    let parent = format!("/nacre-test-{id}");
    let value = [field(2, b"h"), field(8, &field(1, parent.as_bytes()))].concat();
    Any {
        type_url: "runtime.v1.PodSandboxConfig".into(),
        value,
        ..Default::default()
    }
}

fn code<T>(answer: ttrpc::Result<T>) -> Code {
    match answer {
        Ok(_) => Code::OK,
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        Err(error) => panic!("{error}"),
    }
}

async fn a_sandbox_lives_until_it_is_shut_down() -> Result<()> {
    let sandbox = Sandbox::start("api-life").await?;
    let id = sandbox.pod.id.clone();
    ensure!(
        sandbox.pod.recorded()?.vmm_pid.is_none(),
        "the VM starts before Create"
    );
    sandbox.api.create_sandbox(soon(), &sandbox.creation()).await?;
    ensure!(sandbox.status().await?.state == "SANDBOX_NOTREADY");
    let recorded = sandbox.pod.recorded()?;
    let cgroup = recorded.cgroup.context("no cgroup")?;
    ensure!(
        cgroup.display().to_string().contains("/nacre-test-api-life/"),
        "{cgroup:?}"
    );
    let request = of!(StartSandboxRequest, id);
    let started = sandbox.api.start_sandbox(soon(), request).await?;
    ensure!(Some(started.pid) == recorded.vmm_pid && started.created_at.seconds > 0);
    let status = sandbox.status().await?;
    ensure!(
        status.state == "SANDBOX_READY" && status.pid == started.pid,
        "{status}"
    );
    let platform = sandbox
        .api
        .platform(soon(), of!(PlatformRequest, id))
        .await?
        .platform;
    ensure!((platform.os.as_str(), platform.architecture.as_str()) == ("linux", "amd64"));
    let metrics = sandbox
        .api
        .sandbox_metrics(soon(), of!(SandboxMetricsRequest, id))
        .await?;
    let data = &metrics.metrics.data;
    ensure!(data.type_url == "io.containerd.cgroups.v2.Metrics", "{data:?}");
    Metrics::parse_from_bytes(&data.value)?;
    let waiting = of!(WaitSandboxRequest, id);
    let wait = sandbox.api.wait_sandbox(soon(), waiting);
    let stopping = of!(StopSandboxRequest, id);
    let stop = async {
        sandbox.api.stop_sandbox(soon(), stopping).await?;
        // The VM has ended when Stop is answered.
        ensure!(!std::path::Path::new(&format!("/proc/{}", started.pid)).exists());
        Ok(())
    };
    let (waited, stopped) = tokio::join!(wait, stop);
    stopped?;
    ensure!(waited?.exit_status == 0);
    let status = sandbox.status().await?;
    ensure!(
        status.state == "SANDBOX_NOTREADY" && status.exited_at.seconds > 0,
        "{status}"
    );
    sandbox.finish().await
}

/// The states of a pod.
const STATES: [&str; 4] = ["absent", "created", "running", "stopped"];
const OK: Code = Code::OK;
const PRE: Code = Code::FAILED_PRECONDITION;

/// The code of each call in the order of [`STATES`]. A call that changes the state is made last.
#[rustfmt::skip]
const CODES: [(&str, [Code; 4]); 10] = [
    //           absent created running stopped
    ("platform", [OK,   OK,     OK,     OK]),
    ("status",   [OK,   OK,     OK,     OK]),
    ("ping",     [OK,   OK,     OK,     OK]),
    ("metrics",  [PRE,  OK,     OK,     PRE]),
    ("update",   [OK,   OK,     OK,     OK]),
    ("resize",   [PRE,  OK,     OK,     Code::UNKNOWN]),
    ("wait",     [PRE,  OK,     OK,     OK]),
    ("create",   [OK,   PRE,    PRE,    Code::UNAVAILABLE]),
    ("start",    [PRE,  OK,     PRE,    Code::UNKNOWN]),
    ("stop",     [OK,   OK,     OK,     OK]),
];

async fn every_call_of_a_sandbox_in_every_state() -> Result<()> {
    for (column, state) in STATES.into_iter().enumerate() {
        for (call, codes) in CODES {
            let sandbox = Sandbox::start("api-codes").await?;
            for step in ["create", "start", "stop"].into_iter().take(column) {
                ensure!(sandbox.code(step, "api-codes").await == OK, "{step}");
            }
            let answered = sandbox.code(call, "api-codes").await;
            ensure!(answered == codes[column], "{call} when {state}: {answered:?}");
            let other = sandbox.code(call, "other").await;
            ensure!(other == Code::NOT_FOUND, "{call} of another sandbox: {other:?}");
            sandbox
                .finish()
                .await
                .with_context(|| format!("{call} when {state}"))?;
        }
    }
    Ok(())
}

async fn containers_come_and_go_in_a_sandbox() -> Result<()> {
    let sandbox = Sandbox::start("api-tasks").await?;
    let (pod, tasks) = (&sandbox.pod, &sandbox.tasks);
    let mut creation = pod.creation();
    creation.id = "inner".into();
    creation.bundle = pod.path().join("inner").display().to_string();
    let early = refused(tasks.create(soon(), &creation).await)?;
    ensure!(early.0 == PRE && early.1.contains("not created"), "{early:?}");
    // containerd connects to each shim that it finds after a restart: a sandbox has no task of its id.
    let connect = ConnectRequest {
        id: pod.id.clone(),
        ..Default::default()
    };
    ensure!(tasks.connect(soon(), &connect).await?.task_pid == 0);
    ensure!(
        tasks
            .stats(
                soon(),
                &StatsRequest {
                    id: pod.id.clone(),
                    ..Default::default()
                }
            )
            .await
            .is_err()
    );
    for step in ["create", "start"] {
        ensure!(sandbox.code(step, &pod.id).await == OK, "{step}");
    }
    let pid = sandbox.status().await?.pid;
    // Its id stands for its containers together, of which it has none: `nacre overhead` asks for them.
    let stats = tasks
        .stats(
            soon(),
            &StatsRequest {
                id: pod.id.clone(),
                ..Default::default()
            },
        )
        .await?;
    ensure!(
        Metrics::parse_from_bytes(&stats.stats.value)?.memory.usage == 0,
        "{stats}"
    );
    let shutdown = ShutdownRequest {
        id: "inner".into(),
        ..Default::default()
    };
    // The last one has the sandbox's own id.
    for id in ["inner", "inner", &pod.id] {
        creation.id = id.to_owned();
        ensure!(tasks.create(soon(), &creation).await?.pid == pid);
        let inner = Remote::init(tasks, id);
        inner.start().await?;
        inner.kill(9).await?;
        ensure!(inner.wait().await?.exit_status == 137);
        inner.delete().await?;
        // containerd calls it after every Delete.
        tasks.shutdown(soon(), &shutdown).await?;
        ensure!(
            sandbox.status().await?.state == "SANDBOX_READY",
            "Shutdown ended the pod"
        );
    }
    creation.id = "inner".into();
    // A task that is left when the pod is stopped can be waited for and deleted.
    tasks.create(soon(), &creation).await?;
    let inner = Remote::init(tasks, "inner");
    inner.start().await?;
    ensure!(sandbox.code("stop", &pod.id).await == OK);
    ensure!(inner.wait().await?.exit_status == 137);
    inner.delete().await?;
    tasks.shutdown(soon(), &shutdown).await?;
    ensure!(sandbox.status().await?.state == "SANDBOX_NOTREADY");
    sandbox.finish().await
}

async fn a_sandbox_whose_vm_dies_is_reported() -> Result<()> {
    let sandbox = Sandbox::start("api-lost").await?;
    let id = sandbox.pod.id.clone();
    for step in ["create", "start"] {
        ensure!(sandbox.code(step, &id).await == OK, "{step}");
    }
    let pid = i32::try_from(sandbox.status().await?.pid)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
    let waited = sandbox
        .api
        .wait_sandbox(soon(), of!(WaitSandboxRequest, id))
        .await?;
    ensure!(waited.exit_status == 137, "{waited}");
    ensure!(sandbox.status().await?.state == "SANDBOX_NOTREADY");
    ensure!(sandbox.pod.failure()?.reason.contains("killed"), "no reason");
    ensure!(sandbox.code("stop", &id).await == OK);
    sandbox.finish().await
}

async fn a_sandbox_is_resized_once_its_guest_has_booted() -> Result<()> {
    let sandbox = Sandbox::start_with("api-size", "memory_mib = 64\n").await?;
    sandbox.api.create_sandbox(soon(), &sandbox.creation()).await?;
    sandbox.resize("api-size").await?;
    let size = sandbox.pod.recorded()?.size.context("no size")?;
    ensure!(size.memory_mib > 256, "{size:?}");
    sandbox.finish().await?;
    // This guest never boots.
    let sandbox = Sandbox::start_with("api-size", "kernel_params = \"fake=silent\"\n").await?;
    sandbox.api.create_sandbox(soon(), &sandbox.creation()).await?;
    let stopping = of!(StopSandboxRequest, "api-size");
    let (resized, stopped) = tokio::join!(
        sandbox.resize("api-size"),
        sandbox.api.stop_sandbox(soon(), stopping)
    );
    stopped?;
    let (code, message) = refused(resized)?;
    ensure!(code == Code::UNKNOWN, "{code:?}: {message}");
    sandbox.finish().await
}

async fn delete_ends_a_sandbox_that_was_never_created() -> Result<()> {
    let sandbox = Sandbox::start("api-idle").await?;
    let shim = pidfd(sandbox.pod.recorded()?.shim_pid)?;
    sandbox.pod.shim(&["delete"])?;
    wait_end(shim).await?;
    sandbox.pod.nothing_left()
}

async fn streaming_is_refused_with_what_to_do() -> Result<()> {
    let sandbox = Sandbox::start("api-stream").await?;
    let stream = sandbox
        .raw
        .new_stream(
            ttrpc::Request {
                service: "containerd.services.streaming.v1.Streaming".into(),
                method: "Stream".into(),
                timeout_nano: 20_000_000_000,
                ..Default::default()
            },
            true,
            true,
        )
        .await?;
    let mut stream = ttrpc::asynchronous::ClientStream::<Any, Any>::new(stream);
    let (code, message) = refused(stream.recv().await)?;
    ensure!(
        code == Code::UNIMPLEMENTED && message.contains("remove io_type"),
        "{code:?} {message}"
    );
    sandbox.finish().await
}
