//! An agent run by hand in its own mount and pid namespaces, and the host's side of its streams.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nacre_protocol::agent::*;
use nacre_protocol::vsock::AGENT_PORT;
use ttrpc::Code;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{Context, with_timeout};

const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a test in an event loop, within the deadline.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE, test)
            .await
            .expect("the deadline is over")
    });
}

pub type Answer<T> = Result<T, (Code, String)>;

fn answer<T>(result: ttrpc::Result<T>) -> Answer<T> {
    result.map_err(|error| {
        let ttrpc::Error::RpcStatus(status) = error else {
            panic!("{error}")
        };
        (status.code(), status.message().to_owned())
    })
}

fn context() -> Context {
    with_timeout(i64::try_from(DEADLINE.as_nanos()).unwrap())
}

pub struct Guest {
    child: Option<Child>,
    sockets: tempfile::TempDir,
    pub rootfs: tempfile::TempDir,
    /// All guests here share one tree of cgroups: each has a directory of its own in it.
    cgroup: String,
    client: Option<AgentClient>,
    next_port: u32,
}

/// A container to be made.
pub struct Container {
    id: String,
    pub spec: serde_json::Value,
    pub streams: [bool; 3],
}

impl Container {
    pub fn new(id: &str, command: &[&str]) -> Self {
        let mut spec: serde_json::Value = serde_json::from_str(include_str!("spec.json")).unwrap();
        spec["process"]["args"] = command.iter().copied().collect();
        Self {
            id: id.to_owned(),
            spec,
            streams: [true; 3],
        }
    }
}

/// The host's ends of a container's streams.
#[derive(Debug)]
pub struct Stdio {
    pub stdin: UnixStream,
    outputs: [BufReader<UnixStream>; 2],
}

async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

impl Stdio {
    async fn rest(&mut self, index: usize) -> String {
        let mut stream = BufReader::new(self.outputs[index].get_ref().try_clone().unwrap());
        let mut text = String::from_utf8(self.outputs[index].buffer().to_vec()).unwrap();
        in_thread(move || {
            stream.read_to_string(&mut text).unwrap();
            text
        })
        .await
    }

    /// The rest of standard output.
    pub async fn stdout(&mut self) -> String {
        self.rest(0).await
    }

    /// The rest of standard error.
    pub async fn stderr(&mut self) -> String {
        self.rest(1).await
    }

    pub fn output(&mut self) -> &mut BufReader<UnixStream> {
        &mut self.outputs[0]
    }

    /// A line of standard output.
    pub async fn line(&mut self) -> String {
        let nothing = BufReader::new(UnixStream::pair().unwrap().0);
        let mut stream = std::mem::replace(&mut self.outputs[0], nothing);
        let (line, stream) = in_thread(move || {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            (line, stream)
        })
        .await;
        self.outputs[0] = stream;
        line
    }
}

/// The wanted streams; an unwanted one has ended from the start.
fn accept(listeners: [Option<UnixListener>; 3]) -> Stdio {
    let [stdin, stdout, stderr] = listeners.map(|listener| match listener {
        Some(listener) => listener.accept().unwrap().0,
        None => UnixStream::pair().unwrap().0,
    });
    Stdio {
        stdin,
        outputs: [stdout, stderr].map(BufReader::new),
    }
}

/// A process object for an exec: root's, in the root directory.
pub fn process(command: &[&str]) -> serde_json::Value {
    serde_json::json!({"args": command, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}})
}

fn busybox_root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for directory in ["bin", "etc", "proc", "sys", "dev", "run", "tmp"] {
        std::fs::create_dir(path.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", path.join("bin/busybox")).expect("package busybox-static");
    for applet in
        "sh cat echo env sleep true touch mkdir id mknod head wc ls sort xargs tty stty readlink grep rm mkfifo stat cut chmod uname ionice"
            .split(' ')
    {
        std::os::unix::fs::symlink("busybox", path.join("bin").join(applet)).unwrap();
    }
    std::fs::write(path.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    root
}

impl Guest {
    pub async fn start() -> Self {
        assert!(
            rustix::process::getuid().is_root(),
            "these tests make containers: run them as root"
        );
        let sockets = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(sockets.path().join(AGENT_PORT.to_string())).unwrap();
        let script = "mount -t cgroup2 none /sys/fs/cgroup && mount -t tmpfs none /run && exec \"$0\" --standalone \"$1\"";
        // Whoever runs the tests may ignore a terminal's signals, as a shell has it in the background.
        let child = Command::new("env")
            .args([
                "--default-signal",
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child",
                "sh",
                "-c",
                script,
            ])
            .arg(std::env::var_os("NACRE_AGENT").unwrap_or(env!("CARGO_BIN_EXE_nacre-agent").into()))
            .arg(sockets.path())
            .spawn()
            .unwrap();
        let stream = in_thread(move || listener.accept().unwrap().0).await;
        stream.set_nonblocking(true).unwrap();
        let stream = tokio::net::UnixStream::from_std(stream).unwrap();
        let client = AgentClient::new(Client::new(Socket::new(stream)));
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self {
            child: Some(child),
            sockets,
            rootfs: busybox_root(),
            cgroup: format!("nacre-agent-test-{}-{count}", std::process::id()),
            client: Some(client),
            next_port: 0x1_0000,
        }
    }

    fn client(&self) -> &AgentClient {
        self.client.as_ref().unwrap()
    }

    pub async fn create(&mut self, id: &str, command: &[&str]) -> Answer<(CreateContainerResponse, Stdio)> {
        self.create_as(Container::new(id, command)).await
    }

    pub async fn create_as(&mut self, mut container: Container) -> Answer<(CreateContainerResponse, Stdio)> {
        container.spec["linux"]["cgroupsPath"] = format!("/{}/{}", self.cgroup, container.id).into();
        container.spec["root"]["path"] = self.rootfs.path().to_str().unwrap().into();
        let (listeners, stdio) = self.listen(container.streams);
        let request = CreateContainerRequest {
            container_id: container.id,
            spec: serde_json::to_vec(&container.spec).unwrap(),
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        let created = answer(self.client().create_container(context(), &request).await)?;
        Ok((created, accept(listeners)))
    }

    /// Sockets at the ports of the wanted streams.
    fn listen(&mut self, wanted: [bool; 3]) -> ([Option<UnixListener>; 3], nacre_protocol::agent::Stdio) {
        let mut ports = [0; 3];
        let mut listeners = [const { None }; 3];
        for ((port, listener), _) in ports
            .iter_mut()
            .zip(&mut listeners)
            .zip(wanted)
            .filter(|(_, wanted)| *wanted)
        {
            *port = self.next_port;
            self.next_port += 1;
            *listener = Some(UnixListener::bind(self.sockets.path().join(port.to_string())).unwrap());
        }
        let [stdin_port, stdout_port, stderr_port] = ports;
        let stdio = nacre_protocol::agent::Stdio {
            stdin_port,
            stdout_port,
            stderr_port,
            ..Default::default()
        };
        (listeners, stdio)
    }

    /// Runs a process beside a container's first.
    pub async fn exec_as(
        &mut self,
        id: &str,
        exec_id: &str,
        process: serde_json::Value,
        streams: [bool; 3],
    ) -> Answer<(u32, Stdio)> {
        let (listeners, stdio) = self.listen(streams);
        let request = StartExecRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            process: serde_json::to_vec(&process).unwrap(),
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        let started = answer(self.client().start_exec(context(), &request).await)?;
        Ok((started.pid, accept(listeners)))
    }

    pub async fn exec(&mut self, id: &str, exec_id: &str, command: &[&str]) -> Answer<(u32, Stdio)> {
        self.exec_as(id, exec_id, process(command), [true; 3]).await
    }

    pub async fn wait_exec(&self, id: &str, exec_id: &str) -> Answer<WaitProcessResponse> {
        answer(
            self.client()
                .wait_process(context(), &Self::exec_of(id, exec_id))
                .await,
        )
    }

    pub async fn kill_exec(&self, id: &str, exec_id: &str, signal: u32) -> Answer<Empty> {
        let request = KillProcessRequest {
            process: Some(Self::exec_of(id, exec_id)).into(),
            signal,
            ..Default::default()
        };
        answer(self.client().kill_process(context(), &request).await)
    }

    pub async fn resize(&self, id: &str, exec_id: &str, width: u32, height: u32) -> Answer<Empty> {
        let request = ResizePtyRequest {
            process: Some(Self::exec_of(id, exec_id)).into(),
            width,
            height,
            ..Default::default()
        };
        answer(self.client().resize_pty(context(), &request).await)
    }

    pub async fn pause(&self, id: &str) -> Answer<Empty> {
        answer(
            self.client()
                .pause_container(context(), &Self::container(id))
                .await,
        )
    }

    pub async fn resume(&self, id: &str) -> Answer<Empty> {
        answer(
            self.client()
                .resume_container(context(), &Self::container(id))
                .await,
        )
    }

    pub async fn update(&self, id: &str, resources: serde_json::Value) -> Answer<Empty> {
        let request = UpdateContainerRequest {
            container_id: id.to_owned(),
            resources: serde_json::to_vec(&resources).unwrap(),
            ..Default::default()
        };
        answer(self.client().update_container(context(), &request).await)
    }

    pub async fn stats(&self, id: &str) -> Answer<ContainerStatsResponse> {
        answer(
            self.client()
                .container_stats(context(), &Self::container(id))
                .await,
        )
    }

    pub async fn wait_oom(&self, id: &str, known_kills: u64) -> Answer<WaitOomResponse> {
        let request = WaitOomRequest {
            container_id: id.to_owned(),
            known_kills,
            ..Default::default()
        };
        answer(self.client().wait_oom(context(), &request).await)
    }

    fn exec_of(id: &str, exec_id: &str) -> ProcessRef {
        ProcessRef {
            exec_id: exec_id.to_owned(),
            ..Self::process(id)
        }
    }

    fn container(id: &str) -> ContainerRef {
        ContainerRef {
            container_id: id.to_owned(),
            ..Default::default()
        }
    }

    fn process(id: &str) -> ProcessRef {
        ProcessRef {
            container_id: id.to_owned(),
            ..Default::default()
        }
    }

    pub async fn start_container(&self, id: &str) -> Answer<Empty> {
        answer(
            self.client()
                .start_container(context(), &Self::container(id))
                .await,
        )
    }

    pub async fn wait(&self, id: &str) -> Answer<WaitProcessResponse> {
        answer(self.client().wait_process(context(), &Self::process(id)).await)
    }

    pub async fn close_stdin(&self, id: &str) -> Answer<Empty> {
        answer(self.client().close_stdin(context(), &Self::process(id)).await)
    }

    pub async fn kill(&self, id: &str, signal: u32, all: bool) -> Answer<Empty> {
        let process = Some(Self::process(id)).into();
        let request = KillProcessRequest {
            process,
            signal,
            all,
            ..Default::default()
        };
        answer(self.client().kill_process(context(), &request).await)
    }

    pub async fn pids(&self, id: &str) -> Answer<Vec<u32>> {
        answer(self.client().list_pids(context(), &Self::container(id)).await).map(|answer| answer.pids)
    }

    pub async fn delete(&self, id: &str) -> Answer<Empty> {
        answer(
            self.client()
                .delete_container(context(), &Self::container(id))
                .await,
        )
    }

    pub async fn setup(&self, build_id: &str) -> Answer<SetupResponse> {
        let request = SetupRequest {
            build_id: build_id.to_owned(),
            ..Default::default()
        };
        answer(self.client().setup(context(), &request).await)
    }

    pub async fn shutdown(&self) -> Answer<Empty> {
        answer(self.client().shutdown(context(), &Empty::new()).await)
    }

    /// Its exit status, once it has ended by itself.
    pub async fn ended(mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        in_thread(move || child.wait().unwrap()).await
    }

    /// Its exit status, once the host has closed its stream.
    pub async fn disconnect(mut self) -> ExitStatus {
        self.client = None;
        self.ended().await
    }

    /// Nothing of a container is in the guest: no cgroup, no state, no bundle, no process.
    pub fn expect_nothing_left(&self, id: &str) {
        let agent = self.child.as_ref().unwrap().id();
        let children = std::fs::read_to_string(format!("/proc/{agent}/task/{agent}/children")).unwrap();
        let root = format!("/proc/{}/root", children.trim());
        for path in [
            &format!("sys/fs/cgroup/{}", self.cgroup),
            "run/nacre/c",
            "run/nacre/b",
        ] {
            let path = Path::new(&root).join(path).join(id);
            assert!(!path.exists(), "{} is left", path.display());
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let unified = Path::new("/sys/fs/cgroup/unified");
        let root = if unified.exists() {
            unified
        } else {
            Path::new("/sys/fs/cgroup")
        };
        for entry in std::fs::read_dir(root.join(&self.cgroup))
            .into_iter()
            .flatten()
            .flatten()
        {
            remove_cgroup(&entry.path());
        }
        remove_cgroup(&root.join(&self.cgroup));
    }
}

/// Removes a cgroup once the processes that a killed guest leaves in it have ended.
fn remove_cgroup(path: &Path) {
    while let Err(error) = std::fs::remove_dir(path) {
        let Ok(mut events) = std::fs::File::open(path.join("cgroup.events")) else {
            return;
        };
        let mut text = String::new();
        events.read_to_string(&mut text).unwrap();
        if text.contains("populated 1") {
            let mut fds = [rustix::event::PollFd::new(&events, rustix::event::PollFlags::PRI)];
            let within = rustix::time::Timespec {
                tv_sec: 10,
                tv_nsec: 0,
            };
            assert_eq!(
                rustix::event::poll(&mut fds, Some(&within)),
                Ok(1),
                "{}: {error}",
                path.display()
            );
        }
    }
}
