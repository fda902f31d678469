//! A standalone agent in mount and PID namespaces of its own, and the host's ends of its streams: [`Guest`]
//! starts and stops the agent, `calls` has one method per request, `container` describes containers and their
//! streams.

mod calls;
pub mod container;

use std::io::Read as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nacre_protocol::agent::*;
use nacre_protocol::vsock::{AGENT_PORT, StreamAddress};
use ttrpc::Code;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{Context, with_timeout};

use self::container::{Container, Stdio, accept, busybox_root};

const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a test in an event loop. Panics if it takes longer than [`DEADLINE`].
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE, test)
            .await
            .expect("the test timed out")
    });
}

/// A reply, or the status code and the message of a refusal.
pub type Answer<T> = Result<T, (Code, String)>;

fn answer<T>(result: ttrpc::Result<T>) -> Answer<T> {
    result.map_err(|error| {
        let ttrpc::Error::RpcStatus(status) = error else {
            panic!("{error}")
        };
        (status.code(), status.message().to_owned())
    })
}

/// Runs blocking `work` without blocking the event loop.
async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn context() -> Context {
    with_timeout(i64::try_from(DEADLINE.as_nanos()).unwrap())
}

/// A running agent and its host.
pub struct Guest {
    child: Option<Child>,
    sockets: tempfile::TempDir,
    /// The root directory of every container that the guest creates.
    pub rootfs: tempfile::TempDir,
    /// Name of the guest's cgroup: all guests of the tests share one cgroup tree.
    cgroup: String,
    /// None once the host has closed the agent's stream.
    client: Option<AgentClient>,
    next_port: u32,
}

impl Guest {
    /// Starts an agent and waits until it has connected.
    pub async fn start() -> Self {
        assert!(
            rustix::process::getuid().is_root(),
            "these tests create containers: run them as root"
        );
        let sockets = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(sockets.path().join(AGENT_PORT.to_string())).unwrap();
        let script = "mount -t cgroup2 none /sys/fs/cgroup && mount -t tmpfs none /run && exec \"$0\" --standalone \"$1\"";
        // A shell starts background jobs with SIGINT and SIGQUIT ignored, which containers would inherit.
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
            next_port: StreamAddress::FIRST_PORT,
        }
    }

    fn client(&self) -> &AgentClient {
        self.client.as_ref().unwrap()
    }

    /// Creates container `id` with the default spec and `command`.
    pub async fn create(&mut self, id: &str, command: &[&str]) -> Answer<(CreateContainerResponse, Stdio)> {
        self.create_as(Container::new(id, command)).await
    }

    /// Creates `container`, and accepts the streams that it wants.
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

    /// Listens at a new address for each wanted stream. Returns the listeners and the addresses.
    fn listen(&mut self, wanted: [bool; 3]) -> ([Option<UnixListener>; 3], nacre_protocol::agent::Stdio) {
        let mut bits = [0; 3];
        let mut listeners = [const { None }; 3];
        for ((bits, listener), _) in bits
            .iter_mut()
            .zip(&mut listeners)
            .zip(wanted)
            .filter(|(_, wanted)| *wanted)
        {
            let address = StreamAddress {
                host_port: self.next_port,
                guest_port: self.next_port,
            };
            self.next_port += 1;
            *bits = address.to_bits();
            let path = self.sockets.path().join(address.host_port.to_string());
            *listener = Some(UnixListener::bind(path).unwrap());
        }
        let [stdin, stdout, stderr] = bits;
        let stdio = nacre_protocol::agent::Stdio {
            stdin,
            stdout,
            stderr,
            ..Default::default()
        };
        (listeners, stdio)
    }

    /// Waits until the agent exits by itself, and returns its exit status.
    pub async fn ended(mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        in_thread(move || child.wait().unwrap()).await
    }

    /// Closes the agent's stream, waits until the agent exits, and returns its exit status.
    pub async fn disconnect(mut self) -> ExitStatus {
        self.client = None;
        self.ended().await
    }

    /// Asserts that the guest has no cgroup of container `id`, and that no file of it is left.
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
            assert!(!path.exists(), "{} still exists", path.display());
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
        remove_cgroup(&root.join(&self.cgroup));
    }
}

/// Removes a cgroup and those below it, after waiting for the processes of a killed guest to exit. One of
/// them may still create a cgroup until then, so the children are listed again at each attempt.
fn remove_cgroup(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        for child in std::fs::read_dir(path).into_iter().flatten().flatten() {
            if child.file_type().unwrap().is_dir() {
                remove_cgroup(&child.path());
            }
        }
        let Err(error) = std::fs::remove_dir(path) else {
            return;
        };
        let Ok(mut events) = std::fs::File::open(path.join("cgroup.events")) else {
            return;
        };
        assert!(Instant::now() < deadline, "{}: {error}", path.display());
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
