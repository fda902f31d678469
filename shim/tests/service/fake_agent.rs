//! An agent without a guest: processes are tasks of the fake VMM that do what their first argument says. If
//! init exits, exec processes are killed a little later, so that their exits are reported after init's, as in
//! a guest.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use nacre_protocol::agent::{
    Agent, ContainerRef, ContainerStatsResponse, CorrectClockRequest, CreateContainerRequest,
    CreateContainerResponse, Empty, KillProcessRequest, ListPidsResponse, ProcessRef, ReadClockResponse,
    ResizePtyRequest, ResizeRequest, ResizeResponse, SetupRequest, SetupResponse, StartExecRequest,
    StartExecResponse, Stdio, UpdateContainerRequest, UpdateContainerResponse, WaitMemoryRequest,
    WaitMemoryResponse, WaitOomRequest, WaitOomResponse, WaitProcessResponse,
};
use nacre_protocol::control::{Channel, FromVmm, Outcome};
use nacre_protocol::guest;
use nacre_protocol::stream_table::StreamTable;
use nacre_protocol::vsock::StreamAddress;
use serde_json::Value;
use tokio::sync::watch;
use ttrpc::asynchronous::TtrpcContext;

use crate::fake_memory;
use crate::fake_process::{Process, run};

/// The pid of every init; exec processes get the numbers after it.
const INIT_PID: u32 = 7;

/// Repeated [`LONG_COUNT`] times, a text of 3 MiB with control characters, as a hostile agent may send.
const LONG_TEXT: &str = "\x1b[31m\n";
const LONG_COUNT: usize = (3 << 20) / LONG_TEXT.len();

/// A guest that cannot read the host's clock, and whose own is behind it by [`CLOCK_LAG_NS`]. Its start of a
/// container returns once that was corrected.
const SLOW_CLOCK: &str = "fake=slow-clock";
const CLOCK_LAG_NS: i64 = 5_000_000_000;

struct Container {
    init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    is_frozen: Mutex<bool>,
    oom_kills: watch::Sender<u64>,
    pids_max: Mutex<String>,
}

impl Container {
    fn process(&self, exec: &str) -> ttrpc::Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let found = self.execs.lock().unwrap().get(exec).cloned();
        found.map_or_else(
            || refuse(ttrpc::Code::NOT_FOUND, format!("no process {exec}")),
            Ok,
        )
    }
}

pub struct FakeAgent {
    control: Arc<Channel>,
    /// The streams that a real VMM would pass on to the shim.
    stream_table: StreamTable,
    behaviour: String,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    /// What the clock was last corrected by, nanoseconds.
    clock_offset: watch::Sender<Option<i64>>,
}

fn refuse<T>(code: ttrpc::Code, message: impl Into<String>) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, message.into())))
}

fn arguments(process: &Value) -> ttrpc::Result<Vec<String>> {
    let arguments: Vec<String> = process["args"]
        .as_array()
        .unwrap()
        .iter()
        .map(|argument| argument.as_str().unwrap().to_owned())
        .collect();
    if arguments[0] == "no-such-command" {
        return refuse(
            ttrpc::Code::NOT_FOUND,
            "exec: \"no-such-command\": executable file not found in $PATH",
        );
    }
    Ok(arguments)
}

impl FakeAgent {
    pub fn new(control: Arc<Channel>, stream_table: StreamTable, behaviour: String) -> Self {
        Self {
            control,
            stream_table,
            behaviour,
            containers: Mutex::default(),
            clock_offset: watch::Sender::default(),
        }
    }

    fn find(&self, id: &str) -> ttrpc::Result<Arc<Container>> {
        let container = self.containers.lock().unwrap().get(id).cloned();
        container.map_or_else(
            || refuse(ttrpc::Code::NOT_FOUND, format!("no container {id}")),
            Ok,
        )
    }

    /// Dials the shim: first with wrong ports, as another process of the guest could, then with those of
    /// `bits`.
    fn dial(&self, bits: u64) -> Option<UnixStream> {
        let address = StreamAddress::from_bits(bits)?;
        let dial = |host_port: u32, guest_port: u32| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let message = FromVmm::Connection {
                host_port,
                guest_port,
            };
            self.control.send(&message, &[theirs.as_raw_fd()]).unwrap();
            ours
        };
        // A VMM that was not taken over passes on this connection only.
        let swapped = StreamAddress {
            host_port: address.guest_port,
            guest_port: address.host_port,
        };
        assert!(self.stream_table.contains(address).unwrap());
        assert!(!self.stream_table.contains(swapped).unwrap());
        let mut wrong = [
            dial(address.host_port, address.guest_port ^ 1),
            dial(address.host_port ^ 1, address.guest_port),
        ];
        let right = dial(address.host_port, address.guest_port);
        let again = dial(address.host_port, address.guest_port);
        // The shim closes each of them: the first byte is the end.
        for stranger in wrong.iter_mut().chain([&mut { again }]) {
            stranger.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            assert_eq!(stranger.read(&mut [0]).unwrap(), 0, "a stranger got a stream");
        }
        Some(right)
    }

    fn process(&self, id: &str, process: &Value, stdio: &Stdio) -> ttrpc::Result<Process> {
        let terminal = process["terminal"] == true;
        assert!(!terminal || stdio.stderr == 0);
        let addresses = [stdio.stdin, stdio.stdout, stdio.stderr];
        let arguments = arguments(process)?;
        let size = process["consoleSize"].as_object().map(|size| {
            let number = |key: &str| u32::try_from(size[key].as_u64().unwrap()).unwrap();
            (number("width"), number("height"))
        });
        Ok(Process {
            arguments,
            streams: Mutex::new(addresses.map(|bits| self.dial(bits))),
            exit: watch::channel(None).0,
            size: terminal.then(|| watch::channel(size).0),
            tree: format!("/{id}"),
        })
    }
}

#[async_trait]
impl Agent for FakeAgent {
    async fn setup(&self, _: &TtrpcContext, request: SetupRequest) -> ttrpc::Result<SetupResponse> {
        let build_id = match self.behaviour.as_str() {
            "fake=old" => "0.0.0+old".to_owned(),
            "fake=long-build" => LONG_TEXT.repeat(LONG_COUNT),
            _ => request.build_id,
        };
        let kernel_release = match self.behaviour.as_str() {
            "fake=long-texts" => LONG_TEXT.repeat(LONG_COUNT),
            _ => "6.1.0-nacre".to_owned(),
        };
        Ok(SetupResponse {
            build_id,
            kernel_release,
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
        let spec: Value = serde_json::from_slice(&request.spec).unwrap();
        match self.behaviour.as_str() {
            "fake=die-in-create" => std::process::exit(3),
            "fake=long-texts" => return refuse(ttrpc::Code::INTERNAL, LONG_TEXT.repeat(LONG_COUNT)),
            _ => {}
        }
        assert_eq!(spec["root"]["path"], guest::rootfs_path(&request.container_id));
        for host in ["prestart", "createRuntime", "poststart", "poststop"] {
            assert!(spec["hooks"][host].is_null(), "{host} in the guest");
        }
        let init = self.process(&request.container_id, &spec["process"], &request.stdio)?;
        let container = Container {
            init: Arc::new(init),
            execs: Mutex::default(),
            is_frozen: Mutex::new(false),
            oom_kills: watch::channel(0).0,
            pids_max: Mutex::new("max\n".into()),
        };
        self.containers
            .lock()
            .unwrap()
            .insert(request.container_id, Arc::new(container));
        Ok(CreateContainerResponse {
            pid: INIT_PID,
            ..Default::default()
        })
    }

    async fn start_container(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        let container = self.find(&request.container_id)?;
        if self.behaviour == SLOW_CLOCK {
            let mut offset = self.clock_offset.subscribe();
            let offset = offset.wait_for(Option::is_some).await.unwrap().unwrap_or(0);
            // The round trip of the measurement is at most 40 ms.
            if (offset - CLOCK_LAG_NS).abs() > 20_000_000 {
                return refuse(ttrpc::Code::INTERNAL, format!("corrected by {offset} ns"));
            }
        }
        let init = Arc::clone(&container.init);
        if init.arguments[0] == "exit-at-once" {
            init.end(0);
        } else if init.arguments[0] == "hold-start" {
            init.exited().await;
        } else {
            tokio::spawn(async move {
                run(&init, &container.oom_kills).await;
                let execs: Vec<_> = container.execs.lock().unwrap().values().cloned().collect();
                later().await;
                for exec in execs.iter().filter(|exec| exec.arguments[0] != "immortal") {
                    exec.end(137);
                }
            });
        }
        Ok(Empty::new())
    }

    async fn start_exec(
        &self,
        _: &TtrpcContext,
        request: StartExecRequest,
    ) -> ttrpc::Result<StartExecResponse> {
        let container = self.find(&request.container_id)?;
        let process: Value = serde_json::from_slice(&request.process).unwrap();
        let process = Arc::new(self.process(&request.container_id, &process, &request.stdio)?);
        let pid = {
            let mut execs = container.execs.lock().unwrap();
            assert!(execs.insert(request.exec_id, Arc::clone(&process)).is_none());
            INIT_PID + u32::try_from(execs.len()).unwrap()
        };
        match process.arguments[0].as_str() {
            "die" => std::process::exit(4),
            // As a VMM that can't exit: its guest has ended, but the process and the control socket stay.
            "panic-and-stay" => {
                let ended = FromVmm::Ended(Outcome::Panic);
                self.control.send(&ended, &[]).unwrap();
                std::future::pending::<()>().await;
            }
            _ => {}
        }
        tokio::spawn(async move { run(&process, &container.oom_kills).await });
        Ok(StartExecResponse {
            pid,
            ..Default::default()
        })
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRef,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let container = self.find(&request.container_id)?;
        let mut exit = container.process(&request.exec_id)?.exit.subscribe();
        let status = exit.wait_for(Option::is_some).await.unwrap().unwrap_or_default();
        container.execs.lock().unwrap().remove(&request.exec_id);
        let oom_kills = *container.oom_kills.borrow();
        Ok(WaitProcessResponse {
            exit_status: status,
            exited_at_ns: 1_700_000_000_000_000_000,
            oom_kills,
            ..Default::default()
        })
    }

    async fn kill_process(&self, _: &TtrpcContext, request: KillProcessRequest) -> ttrpc::Result<Empty> {
        if matches!(self.behaviour.as_str(), "fake=deaf" | "fake=wedged") {
            return std::future::pending().await;
        }
        let container = self.find(&request.process.container_id)?;
        // A frozen process can only be killed.
        if !*container.is_frozen.lock().unwrap() || request.signal == 9 {
            container
                .process(&request.process.exec_id)?
                .end(128 + request.signal);
        }
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let container = self.find(&request.process.container_id)?;
        match &container.process(&request.process.exec_id)?.size {
            Some(size) => size.send_replace(Some((request.width, request.height))),
            None => return refuse(ttrpc::Code::FAILED_PRECONDITION, "no terminal"),
        };
        Ok(Empty::new())
    }

    async fn list_pids(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<ListPidsResponse> {
        if self.behaviour == "fake=wedged" {
            return std::future::pending().await;
        }
        let container = self.find(&request.container_id)?;
        let last = INIT_PID + u32::try_from(container.execs.lock().unwrap().len()).unwrap();
        // And a child of init.
        let pids = (INIT_PID..=last).chain([100]).collect();
        Ok(ListPidsResponse {
            pids,
            ..Default::default()
        })
    }

    async fn pause_container(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        let container = self.find(&request.container_id)?;
        if container
            .init
            .arguments
            .get(1)
            .is_some_and(|argument| argument == "unstoppable")
        {
            return refuse(ttrpc::Code::INTERNAL, "cgroup.freeze: no");
        }
        if container
            .init
            .arguments
            .get(1)
            .is_some_and(|argument| argument == "hold-pause")
        {
            container.init.exited().await;
        }
        *container.is_frozen.lock().unwrap() = true;
        Ok(Empty::new())
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        *self.find(&request.container_id)?.is_frozen.lock().unwrap() = false;
        Ok(Empty::new())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<UpdateContainerResponse> {
        let container = self.find(&request.container_id)?;
        let resources: Value = serde_json::from_slice(&request.resources).unwrap();
        if let Some(bytes) = resources["memory"]["limit"].as_i64() {
            return match fake_memory::limit(bytes) {
                Ok(()) => Ok(UpdateContainerResponse::new()),
                Err(reason) => refuse(ttrpc::Code::FAILED_PRECONDITION, reason),
            };
        }
        let Some(limit) = resources["pids"]["limit"].as_i64() else {
            return refuse(ttrpc::Code::INVALID_ARGUMENT, "linux.resources: nothing known");
        };
        *container.pids_max.lock().unwrap() = format!("{limit}\n");
        Ok(UpdateContainerResponse::new())
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        request: ContainerRef,
    ) -> ttrpc::Result<ContainerStatsResponse> {
        let container = self.find(&request.container_id)?;
        let pids_max = container.pids_max.lock().unwrap().clone();
        let pids = if self.behaviour == fake_memory::GREEDY {
            format!("{}\n", fake_memory::asked())
        } else {
            "3\n".to_owned()
        };
        let files = [
            ("pids.current", pids.as_str()),
            ("pids.max", &pids_max),
            ("memory.current", "4096\n"),
            ("cpu.stat", "usage_usec 5\n"),
        ];
        Ok(ContainerStatsResponse {
            files: files
                .into_iter()
                .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
                .collect(),
            ..Default::default()
        })
    }

    async fn wait_oom(&self, _: &TtrpcContext, request: WaitOomRequest) -> ttrpc::Result<WaitOomResponse> {
        let mut kills = self.find(&request.container_id)?.oom_kills.subscribe();
        let more = kills.wait_for(|kills| *kills > request.known_kills).await;
        match more.map(|kills| *kills) {
            Ok(kills) => Ok(WaitOomResponse {
                kills,
                ..Default::default()
            }),
            Err(_) => refuse(ttrpc::Code::NOT_FOUND, "deleted"),
        }
    }

    async fn resize(&self, _: &TtrpcContext, request: ResizeRequest) -> ttrpc::Result<ResizeResponse> {
        Ok(ResizeResponse {
            vcpus: request.vcpus,
            plugged_mib: request.memory.mib,
            ..Default::default()
        })
    }

    async fn wait_memory(&self, _: &TtrpcContext, _: WaitMemoryRequest) -> ttrpc::Result<WaitMemoryResponse> {
        match fake_memory::wanted(&self.behaviour).await {
            Ok(plugged_mib) => Ok(WaitMemoryResponse {
                plugged_mib,
                ..Default::default()
            }),
            Err(reason) => refuse(ttrpc::Code::INTERNAL, reason),
        }
    }

    async fn wait_clock_lost(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        if self.behaviour == SLOW_CLOCK {
            return Ok(Empty::new());
        }
        std::future::pending().await
    }

    async fn read_clock(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<ReadClockResponse> {
        Ok(ReadClockResponse {
            realtime_ns: nacre_pod::clock::realtime_ns() - CLOCK_LAG_NS,
            ..Default::default()
        })
    }

    async fn correct_clock(&self, _: &TtrpcContext, request: CorrectClockRequest) -> ttrpc::Result<Empty> {
        self.clock_offset.send_replace(Some(request.offset_ns));
        Ok(Empty::new())
    }

    async fn find_devices(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }

    async fn forget_files(&self, _: &TtrpcContext, _: ContainerRef) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }

    async fn delete_container(&self, _: &TtrpcContext, request: ContainerRef) -> ttrpc::Result<Empty> {
        self.find(&request.container_id)?;
        self.containers.lock().unwrap().remove(&request.container_id);
        Ok(Empty::new())
    }
}

/// Waits 100 ms, in which other tasks run.
async fn later() {
    let moment = Duration::from_millis(100);
    let _elapsed = tokio::time::timeout(moment, std::future::pending::<()>()).await;
}
