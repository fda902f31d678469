//! /init of a guest whose agent lies. It makes no container: it only claims to. Where its [`Lie`] does not say
//! otherwise, it answers as an agent does, with a container that runs until it is killed. Never runs on the host.

use std::fs;
use std::io;

use anyhow::{Context as _, Result, ensure};
use nacre_protocol::agent::{
    ContainerStatsResponse, CreateContainerRequest, CreateContainerResponse, Empty, KillProcessRequest,
    ListPidsResponse, ProcessRef, ReadClockResponse, ResizeResponse, SetupRequest, SetupResponse,
    StartExecRequest, StartExecResponse, Stdio, UpdateContainerResponse, WaitProcessResponse,
};
use nacre_protocol::vsock::{AGENT_PORT, StreamAddress};
use rustix::mount::{MountFlags, mount};

use super::wire::{Call, Wire};
use super::{Lie, PARAMETER};

/// The pid of every process.
const PID: u32 = 7;

/// The agent's state.
pub(super) struct Agent {
    pub wire: Wire,
    pub lie: Lie,
    /// The calls that wait for an exit, and the process of each.
    pub waits: Vec<(u32, ProcessRef)>,
    /// Streams of processes, which stay open until they exit.
    streams: Vec<(ProcessRef, Wire)>,
    /// A container was started.
    pub runs: bool,
}

/// Runs the agent. Returns only with an error; PID 1 then ends, which panics the kernel.
///
/// # Errors
/// If the guest can't be set up, or the shim closes the stream.
pub fn run_as_init() -> Result<()> {
    ensure!(std::process::id() == 1, "this program is /init of a guest");
    mount("proc", "/proc", "proc", MountFlags::empty(), None).context("mounting /proc")?;
    let line = fs::read_to_string("/proc/cmdline")?;
    let name = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix(PARAMETER))
        .context("the kernel's command line names no lie")?;
    let (_, lie) = Lie::ALL
        .into_iter()
        .find(|(known, _)| *known == name)
        .with_context(|| format!("no lie {name}"))?;
    let mut agent = Agent {
        wire: Wire::dial(None, AGENT_PORT).context("connecting to the shim")?,
        lie,
        waits: Vec::new(),
        streams: Vec::new(),
        runs: false,
    };
    loop {
        let call = agent.wire.call()?;
        if !agent.lie_about(&call)? {
            agent.serve(&call)?;
        }
    }
}

impl Agent {
    /// Answers `call` as an agent does.
    pub fn serve(&mut self, call: &Call) -> io::Result<()> {
        let stream = call.stream;
        match call.method.as_str() {
            "Setup" => {
                let request: SetupRequest = call.request()?;
                let mut response = SetupResponse::new();
                response.build_id = request.build_id;
                response.kernel_release = "6.1.0-hostile".to_owned();
                self.wire.answer(stream, &response)
            }
            "CreateContainer" => {
                let request: CreateContainerRequest = call.request()?;
                let mut init = ProcessRef::new();
                init.container_id = request.container_id;
                self.dial(&init, &request.stdio)?;
                let mut response = CreateContainerResponse::new();
                response.pid = PID;
                self.wire.answer(stream, &response)
            }
            "StartContainer" => {
                self.runs = true;
                self.wire.answer(stream, &Empty::new())
            }
            "StartExec" => {
                let request: StartExecRequest = call.request()?;
                let mut exec = ProcessRef::new();
                (exec.container_id, exec.exec_id) = (request.container_id, request.exec_id);
                self.dial(&exec, &request.stdio)?;
                let mut response = StartExecResponse::new();
                response.pid = PID;
                self.wire.answer(stream, &response)?;
                self.exit(&exec, 0)
            }
            "WaitProcess" => {
                self.waits.push((stream, call.request()?));
                Ok(())
            }
            "KillProcess" => {
                let request: KillProcessRequest = call.request()?;
                self.wire.answer(stream, &Empty::new())?;
                self.exit(&request.process, 128 + request.signal)
            }
            "WaitOom" | "WaitMemory" | "WaitClockLost" => Ok(()),
            _ => self.answer_question(call),
        }
    }

    fn answer_question(&mut self, call: &Call) -> io::Result<()> {
        let mut pids = ListPidsResponse::new();
        pids.pids = vec![PID];
        let mut stats = ContainerStatsResponse::new();
        stats.files.insert("pids.current".to_owned(), b"1\n".to_vec());
        let answer: &dyn protobuf::MessageDyn = match call.method.as_str() {
            "ListPids" => &pids,
            "ContainerStats" => &stats,
            "UpdateContainer" => &UpdateContainerResponse::new(),
            "Resize" => &ResizeResponse::new(),
            "ReadClock" => &ReadClockResponse::new(),
            _ => &Empty::new(),
        };
        self.wire.answer(call.stream, answer)
    }

    /// Opens the streams of `process`.
    pub fn dial(&mut self, process: &ProcessRef, stdio: &Stdio) -> io::Result<()> {
        for bits in [stdio.stdin, stdio.stdout, stdio.stderr] {
            if let Some(address) = StreamAddress::from_bits(bits) {
                let stream = Wire::dial(Some(address.guest_port), address.host_port)?;
                self.streams.push((process.clone(), stream));
            }
        }
        Ok(())
    }

    /// Claims that `process` has exited: its streams end, and the call that waits for it is answered.
    pub fn exit(&mut self, process: &ProcessRef, status: u32) -> io::Result<()> {
        let is_same = |other: &ProcessRef| {
            other.container_id == process.container_id && other.exec_id == process.exec_id
        };
        self.streams.retain(|(owner, _)| !is_same(owner));
        let mut response = WaitProcessResponse::new();
        response.exit_status = status;
        let waits = std::mem::take(&mut self.waits);
        for (stream, waited) in waits {
            if is_same(&waited) {
                self.wire.answer(stream, &response)?;
            } else {
                self.waits.push((stream, waited));
            }
        }
        Ok(())
    }
}
