//! A pod under test: an installation with the fake VMM, a bundle, a stand-in for containerd that receives
//! events, and a client of the shim that `start` has started. At the end it checks that nothing is left on
//! the host.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteRequest, DeleteResponse, ForwardRequest, KillRequest, Mount, PidsRequest,
    ProcessInfo, ShutdownRequest, StartRequest, StateRequest, StateResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Events, TaskClient, create_events};
use nacre_protocol::state;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::process::{PidfdFlags, pidfd_open};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use ttrpc::asynchronous::{Client, Server, TtrpcContext};
use ttrpc::context::with_duration;

struct Containerd(mpsc::UnboundedSender<Envelope>);

#[async_trait]
impl Events for Containerd {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        // Fails if the test has ended.
        let _ = self.0.send(request.envelope.unwrap_or_default());
        Ok(Empty::new())
    }
}

/// All resources of one test; its directories are removed when it is dropped.
pub struct Pod {
    pub directory: tempfile::TempDir,
    pub id: String,
    pub address: String,
    events: mpsc::UnboundedReceiver<Envelope>,
    event_sender: mpsc::UnboundedSender<Envelope>,
    containerd: Option<Server>,
}

/// The deadline of one call.
pub fn soon() -> ttrpc::context::Context {
    with_duration(Duration::from_secs(20))
}

/// Writes `config` as config.toml of the installation in `directory`. No fake guest is saved as a template, unless
/// `config` turns templates on.
pub fn write_config(directory: &Path, config: &str) -> Result<()> {
    let off = if config.contains("templates = ") {
        ""
    } else {
        "templates = false\n"
    };
    let text = format!("{off}{config}");
    Ok(std::fs::write(directory.join("etc/nacre/config.toml"), text)?)
}

impl Pod {
    /// Makes an installation with `config` as its config.toml, and a bundle whose spec `change` has adapted.
    /// Runs nothing.
    pub async fn prepare(id: &str, config: &str, change: impl FnOnce(&mut Value)) -> Result<Self> {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let path = directory.path();
        for name in ["bin", "etc/nacre", "share/nacre", "bundle", "root", "host"] {
            std::fs::create_dir_all(path.join(name))?;
        }
        std::fs::hard_link(
            env!("CARGO_BIN_EXE_containerd-shim-nacre-v2"),
            path.join("bin/containerd-shim-nacre-v2"),
        )?;
        std::fs::hard_link(std::env::current_exe()?, path.join("bin/nacre-vmm"))?;
        for name in ["vmlinux", "initramfs.cpio"] {
            std::fs::write(path.join("share/nacre").join(name), "fake")?;
        }
        write_config(path, config)?;
        std::fs::write(path.join("root/in-the-root"), "")?;
        std::fs::write(path.join("host/on-the-host"), "")?;
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": {"args": ["sleep"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "linux": {
                "cgroupsPath": format!("/nacre-test-{id}/{id}"),
                "namespaces": [{"type":"mount"},{"type":"pid"},{"type":"network"},{"type":"ipc"},{"type":"uts"}]
            }
        });
        change(&mut spec);
        std::fs::write(path.join("bundle/config.json"), spec.to_string())?;
        let (event_sender, events) = mpsc::unbounded_channel();
        let mut pod = Self {
            id: id.to_owned(),
            address: String::new(),
            events,
            event_sender,
            containerd: None,
            directory,
        };
        pod.start_containerd().await?;
        Ok(pod)
    }

    /// Starts to receive events, as containerd does.
    pub async fn start_containerd(&mut self) -> Result<()> {
        let mut server = Server::new()
            .bind(&format!("unix://{}", self.path().join("events").display()))?
            .register_service(create_events(Arc::new(Containerd(self.event_sender.clone()))));
        server.start().await?;
        self.containerd = Some(server);
        Ok(())
    }

    /// Stops to receive events and removes the socket, as when containerd stops.
    pub async fn stop_containerd(&mut self) -> Result<()> {
        if let Some(mut server) = self.containerd.take() {
            server.shutdown().await?;
        }
        // Fails if the server has removed it.
        drop(std::fs::remove_file(self.path().join("events")));
        Ok(())
    }

    /// Prepares a pod whose init has these arguments, and runs `start`.
    pub async fn start(id: &str, config: &str, arguments: &[&str]) -> Result<(Self, TaskClient)> {
        let mut pod = Self::prepare(id, config, |spec| spec["process"]["args"] = json!(arguments)).await?;
        let client = pod.run_start().await?;
        Ok((pod, client))
    }

    /// Runs `start` as containerd does, which takes both outputs for the address.
    pub async fn run_start(&mut self) -> Result<TaskClient> {
        let output = self.shim(&["start"])?;
        ensure!(output.stderr.is_empty(), "start: {output:?}");
        self.address = String::from_utf8(output.stdout)?;
        self.connect().await
    }

    pub async fn connect(&self) -> Result<TaskClient> {
        Ok(TaskClient::new(
            Client::connect(&self.address)
                .await
                .with_context(|| self.address.clone())?,
        ))
    }

    /// Runs the shim's program in the bundle with these arguments last.
    pub fn shim(&self, arguments: &[&str]) -> Result<Output> {
        let output = self.command(arguments).output()?;
        ensure!(output.status.success(), "{arguments:?}: {output:?}");
        Ok(output)
    }

    /// The command that [`Pod::shim`] runs.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let path = self.path();
        let mut command = Command::new(path.join("bin/containerd-shim-nacre-v2"));
        command
            .args([
                "-namespace",
                "test",
                "-address",
                &self.containerd(),
                "-id",
                &self.id,
            ])
            .args(arguments)
            .current_dir(path.join("bundle"))
            .env("TTRPC_ADDRESS", path.join("events"))
            .stdin(Stdio::null());
        command
    }

    fn containerd(&self) -> String {
        self.path().join("containerd.sock").display().to_string()
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn key(&self) -> String {
        state::pod_key(&self.containerd(), "test", &self.id)
    }

    pub fn recorded(&self) -> Result<state::Pod> {
        let file = state::pod_dir(&self.key()).join(state::POD_FILE);
        Ok(serde_json::from_slice(
            &std::fs::read(&file).with_context(|| file.display().to_string())?,
        )?)
    }

    /// Waits until pod.json is as `wanted`, for `limit` at most.
    pub async fn until_recorded(
        &self,
        limit: Duration,
        wanted: impl Fn(&state::Pod) -> bool + Send + 'static,
    ) -> Result<()> {
        let directory = state::pod_dir(&self.key());
        let written = inotify::init(CreateFlags::CLOEXEC)?;
        inotify::add_watch(&written, &directory, WatchFlags::MOVED_TO)?;
        let waited = tokio::task::spawn_blocking(move || {
            let until = Instant::now() + limit;
            loop {
                let bytes = std::fs::read(directory.join(state::POD_FILE))?;
                if wanted(&serde_json::from_slice(&bytes)?) {
                    return Ok(());
                }
                let left = until.saturating_duration_since(Instant::now());
                let mut polled = [PollFd::new(&written, PollFlags::IN)];
                ensure!(
                    poll(&mut polled, Some(&Timespec::try_from(left)?))? == 1,
                    "it is not after {limit:?}: {}",
                    String::from_utf8_lossy(&bytes)
                );
                rustix::io::read(&written, &mut [0_u8; 4096])?;
            }
        });
        waited.await?
    }

    /// Reads and removes the pod's failure record.
    pub fn failure(&self) -> Result<state::Failure> {
        let file = state::failure_file(&self.key());
        let failure =
            serde_json::from_slice(&std::fs::read(&file).with_context(|| file.display().to_string())?)?;
        std::fs::remove_file(file)?;
        Ok(failure)
    }

    /// Makes a FIFO for a stream.
    pub fn fifo(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
        Ok(path)
    }

    /// A Create request: the root is a bind mount, and there are no streams.
    pub fn creation(&self) -> CreateTaskRequest {
        let mount = Mount {
            type_: "bind".into(),
            source: self.path().join("root").display().to_string(),
            options: vec!["rbind".into(), "rw".into()],
            ..Default::default()
        };
        CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.path().join("bundle").display().to_string(),
            rootfs: vec![mount],
            ..Default::default()
        }
    }

    pub async fn start_task(&self, client: &TaskClient) -> Result<u32> {
        Ok(client
            .start(
                soon(),
                &StartRequest {
                    id: self.id.clone(),
                    ..Default::default()
                },
            )
            .await?
            .pid)
    }

    pub async fn wait(&self, client: &TaskClient) -> Result<WaitResponse> {
        Ok(client
            .wait(
                soon(),
                &WaitRequest {
                    id: self.id.clone(),
                    ..Default::default()
                },
            )
            .await?)
    }

    pub async fn state(&self, client: &TaskClient) -> ttrpc::Result<StateResponse> {
        client
            .state(
                soon(),
                &StateRequest {
                    id: self.id.clone(),
                    ..Default::default()
                },
            )
            .await
    }

    /// The processes of the pod's own container.
    pub async fn pids(&self, client: &TaskClient) -> ttrpc::Result<Vec<ProcessInfo>> {
        let request = PidsRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        Ok(client.pids(soon(), &request).await?.processes)
    }

    pub async fn kill(&self, client: &TaskClient, signal: i32) -> ttrpc::Result<Empty> {
        let request = KillRequest {
            id: self.id.clone(),
            signal: signal.unsigned_abs(),
            all: true,
            ..Default::default()
        };
        client.kill(soon(), &request).await
    }

    pub async fn delete(&self, client: &TaskClient) -> ttrpc::Result<DeleteResponse> {
        client
            .delete(
                soon(),
                &DeleteRequest {
                    id: self.id.clone(),
                    ..Default::default()
                },
            )
            .await
    }

    /// Shuts the sandbox down and closes the connection, as containerd does, waits until the shim exits, runs `delete`, and
    /// checks that nothing is left.
    pub async fn finish(&self, client: TaskClient) -> Result<()> {
        let shim = self.recorded()?.shim_pid;
        let ended = pidfd(shim)?;
        client
            .shutdown(
                soon(),
                &ShutdownRequest {
                    id: self.id.clone(),
                    ..Default::default()
                },
            )
            .await?;
        // The shim waits for a second if a clone of it is left.
        drop(client);
        wait_end(ended).await.context("the shim does not end")?;
        self.nothing_left()?;
        self.shim(&[
            "-bundle",
            &self.path().join("bundle").display().to_string(),
            "delete",
        ])?;
        self.nothing_left()
    }

    pub fn nothing_left(&self) -> Result<()> {
        let directory = state::pod_dir(&self.key());
        ensure!(!directory.exists(), "{} is left", directory.display());
        let parent = format!("nacre-test-{}", self.id);
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            ensure!(
                !Path::new(root).join(&parent).exists(),
                "cgroup {root}/{parent} is left"
            );
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(
            !mounts.contains(&self.path().display().to_string()),
            "a mount is left: {mounts}"
        );
        for (pid, program) in programs()? {
            ensure!(
                !program.starts_with(self.path()),
                "process {pid} of {} is left",
                program.display()
            );
        }
        Ok(())
    }

    /// The events until `last`, each as its topic and what [`describe`] adds.
    pub async fn events_until(&mut self, last: &str) -> Result<Vec<String>> {
        let mut descriptions = Vec::new();
        loop {
            let next = tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await;
            let Ok(Some(envelope)) = next else {
                bail!("no {last:?} after {descriptions:?}")
            };
            descriptions.push(describe(&envelope)?);
            if descriptions.last().is_some_and(|description| description == last) {
                return Ok(descriptions);
            }
        }
    }

    /// The topics of the events until `last`.
    pub async fn topics_until(&mut self, last: &str) -> Result<Vec<String>> {
        let mut topics = Vec::new();
        loop {
            let next = tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await;
            let Ok(Some(envelope)) = next else {
                bail!("no {last} after {topics:?}")
            };
            topics.push(envelope.topic);
            if topics.last().is_some_and(|topic| topic == last) {
                return Ok(topics);
            }
        }
    }
}

/// Cleans up after a test that failed, as containerd does after a shim that was killed.
impl Drop for Pod {
    fn drop(&mut self) {
        if state::pod_dir(&self.key()).exists()
            && let Err(error) = self.shim(&["delete"])
        {
            println!("    {} is left: {error:#}", self.id);
        }
    }
}

/// An event's topic, with the exec id and exit status if it has them.
fn describe(envelope: &Envelope) -> Result<String> {
    use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted, TaskExit};
    let topic = envelope.topic.trim_start_matches("/tasks/");
    let bytes = &envelope.event.value;
    Ok(match topic {
        "exec-added" => format!("{topic} {}", TaskExecAdded::parse_from_bytes(bytes)?.exec_id),
        "exec-started" => format!("{topic} {}", TaskExecStarted::parse_from_bytes(bytes)?.exec_id),
        "exit" => {
            let exit = TaskExit::parse_from_bytes(bytes)?;
            if exit.id == exit.container_id {
                format!("{topic} {}", exit.exit_status)
            } else {
                format!("{topic} {} {}", exit.id, exit.exit_status)
            }
        }
        _ => topic.to_owned(),
    })
}

/// All processes, with their programs.
pub fn programs() -> Result<HashMap<u32, PathBuf>> {
    let mut found = HashMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
            continue;
        };
        // Fails if the process has exited since the directory was listed.
        if let Ok(program) = std::fs::read_link(path.join("exe")) {
            found.insert(pid, program);
        }
    }
    Ok(found)
}

pub fn pidfd(pid: u32) -> Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("pid 0")?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

pub async fn wait_end(process: OwnedFd) -> Result<()> {
    let waited = tokio::task::spawn_blocking(move || {
        let timeout = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout))
    });
    ensure!(waited.await?? == 1, "it still runs after 20 s");
    Ok(())
}

/// The status of a call that must fail.
pub fn refused<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> Result<(ttrpc::Code, String)> {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => Ok((status.code(), status.message)),
        other => bail!("not refused: {other:?}"),
    }
}

/// Memory that a process holds for itself, KiB. Not its private dirty pages: those of a program that was
/// built just now count as dirty until the kernel has written them to disk.
pub fn anonymous_kib(pid: u32) -> Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup
        .lines()
        .find(|line| line.starts_with("Anonymous:"))
        .context("no Anonymous line")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}
