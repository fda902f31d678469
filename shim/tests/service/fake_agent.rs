//! An agent without a guest: containers are tasks of the fake VMM that do what their first argument says.

use std::collections::HashMap;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use nacre_protocol::agent::{
    Agent, ContainerRef, CreateContainerRequest, CreateContainerResponse, Empty, KillProcessRequest,
    ListPidsResponse, ProcessRef, SetupRequest, SetupResponse, WaitProcessResponse,
};
use nacre_protocol::control::{Channel, FromVmm};
use nacre_protocol::guest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use ttrpc::asynchronous::TtrpcContext;

type Exit = watch::Sender<Option<u32>>;

struct Process {
    words: Vec<String>,
    /// stdin, stdout, stderr.
    streams: Mutex<[Option<UnixStream>; 3]>,
    exit: Exit,
    tree: String,
}

pub struct FakeAgent {
    control: Arc<Channel>,
    behaviour: String,
    processes: Mutex<HashMap<String, Arc<Process>>>,
}

fn refuse<T>(code: ttrpc::Code, message: impl Into<String>) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, message.into())))
}

impl FakeAgent {
    pub fn new(control: Arc<Channel>, behaviour: String) -> Self {
        Self {
            control,
            behaviour,
            processes: Mutex::default(),
        }
    }

    fn find(&self, id: &str) -> ttrpc::Result<Arc<Process>> {
        let process = self.processes.lock().unwrap().get(id).cloned();
        process.map_or_else(
            || refuse(ttrpc::Code::NOT_FOUND, format!("no container {id}")),
            Ok,
        )
    }

    /// Dials the shim on `port`.
    fn dial(&self, port: u32) -> Option<UnixStream> {
        (port != 0).then(|| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            self.control
                .send(&FromVmm::Connection { port }, &[theirs.as_raw_fd()])
                .unwrap();
            ours
        })
    }
}

#[async_trait]
impl Agent for FakeAgent {
    async fn setup(&self, _: &TtrpcContext, request: SetupRequest) -> ttrpc::Result<SetupResponse> {
        let build_id = if self.behaviour == "fake=old" {
            "0.0.0+old".to_owned()
        } else {
            request.build_id
        };
        Ok(SetupResponse {
            build_id,
            kernel_release: "6.1.0-nacre".into(),
            init_started_us: 10,
            dialed_us: 20,
            ..Default::default()
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let spec: serde_json::Value = serde_json::from_slice(&request.spec).unwrap();
        let words: Vec<String> = spec["process"]["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap().to_owned())
            .collect();
        if words[0] == "no-such-command" {
            return refuse(
                ttrpc::Code::NOT_FOUND,
                "exec: \"no-such-command\": executable file not found in $PATH",
            );
        }
        if self.behaviour == "fake=die-in-create" {
            std::process::exit(3);
        }
        assert_eq!(spec["root"]["path"], guest::rootfs_path(&request.container_id));
        let streams = [
            request.stdio.stdin_port,
            request.stdio.stdout_port,
            request.stdio.stderr_port,
        ];
        let process = Process {
            words,
            streams: Mutex::new(streams.map(|port| self.dial(port))),
            exit: watch::channel(None).0,
            tree: format!("/{}", request.container_id),
        };
        self.processes
            .lock()
            .unwrap()
            .insert(request.container_id, Arc::new(process));
        Ok(CreateContainerResponse {
            pid: 7,
            ..Default::default()
        })
    }

    async fn start_container(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        let process = self.find(&request.container_id)?;
        if process.words[0] == "exit-at-once" {
            process.exit.send_replace(Some(0));
            process
                .streams
                .lock()
                .unwrap()
                .iter_mut()
                .for_each(|stream| drop(stream.take()));
        } else {
            tokio::spawn(run(process));
        }
        Ok(Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRef,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let mut exit = self.find(&request.container_id)?.exit.subscribe();
        let status = exit.wait_for(Option::is_some).await.unwrap().unwrap_or_default();
        Ok(WaitProcessResponse {
            exit_status: status,
            exited_at_ns: 1_700_000_000_000_000_000,
            ..Default::default()
        })
    }

    async fn kill_process(&self, _: &TtrpcContext, request: KillProcessRequest) -> ttrpc::Result<Empty> {
        let process = self.find(&request.process.container_id)?;
        process.exit.send_replace(Some(128 + request.signal));
        process
            .streams
            .lock()
            .unwrap()
            .iter_mut()
            .for_each(|stream| drop(stream.take()));
        Ok(Empty::new())
    }

    async fn list_pids(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<ListPidsResponse> {
        self.find(&request.container_id)?;
        Ok(ListPidsResponse {
            pids: vec![7, 8],
            ..Default::default()
        })
    }

    async fn delete_container(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        self.find(&request.container_id)?;
        Ok(Empty::new())
    }
}

async fn run(process: Arc<Process>) {
    let [stdin, stdout, stderr] = std::mem::take(&mut *process.streams.lock().unwrap()).map(|stream| {
        stream.map(|stream| {
            stream.set_nonblocking(true).unwrap();
            tokio::net::UnixStream::from_std(stream).unwrap()
        })
    });
    let status = match process.words[0].as_str() {
        "exit" => process.words[1].parse().unwrap(),
        "say" => {
            stdout
                .unwrap()
                .write_all(process.words[1].as_bytes())
                .await
                .unwrap();
            stderr
                .unwrap()
                .write_all(process.words[2].as_bytes())
                .await
                .unwrap();
            0
        }
        "cat" => {
            let (mut from, mut to) = (stdin.unwrap(), stdout.unwrap());
            tokio::io::copy(&mut from, &mut to).await.unwrap();
            0
        }
        "flood" => {
            let mut to = stdout.unwrap();
            for _ in 0..1024 {
                to.write_all(&[0; 65536]).await.unwrap();
            }
            0
        }
        "ask" => {
            let mut answer = Vec::new();
            stdin.unwrap().take(3).read_to_end(&mut answer).await.unwrap();
            u32::from(answer == b"yes")
        }
        "list" => {
            let mut names: Vec<String> = std::fs::read_dir(Path::new(&process.tree).join(&process.words[1]))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            let text = names.join(" ");
            stdout.unwrap().write_all(text.as_bytes()).await.unwrap();
            0
        }
        // Until it is killed.
        _ => return keep(stdout, &process).await,
    };
    process.exit.send_if_modified(|exit| {
        let first = exit.is_none();
        exit.get_or_insert(status);
        first
    });
}

async fn keep(stdout: Option<tokio::net::UnixStream>, process: &Process) {
    let mut exit = process.exit.subscribe();
    exit.wait_for(Option::is_some).await.unwrap();
    drop(stdout);
}
