//! A process of a container that opens AF_VSOCK sockets: it gets no stream of another process.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};
use containerd_shim_protos::api::{
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, StartRequest, StartResponse, WaitRequest,
    WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use nacre_protocol::stream_table::TABLE_BYTES;
use nacre_protocol::vsock::{AGENT_PORT, StreamAddress};
use nacre_tests::container_program::Program;
use nacre_tests::containerd::ctr::{Foreground, Run, fresh_id};
use nacre_tests::containerd::task;
use serde_json::json;

use crate::{Test, core};
use nacre_tests::leaks::only_process;

pub const TESTS: &[Test] = &[core(
    "a container's process can't take another process's streams",
    streams_stay_with_their_process,
)];

/// What connect(2) fails with if the VMM refuses.
const REFUSED: &str = "ECONNRESET";

/// A container whose process dials.
struct Stranger {
    container: Foreground,
    _program: Program,
}

impl Stranger {
    fn start() -> Result<Self> {
        let program = Program::new("nacre-dial")?;
        let (mount, command) = (program.mount(), program.command());
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let run = Run {
            flags: &["--mount", &mount],
            command: &command,
            ..Run::default()
        };
        let mut container = run.spawn(&fresh_id("stranger"))?;
        ensure!(container.line()? == "ready", "the process does not run");
        Ok(Self {
            container,
            _program: program,
        })
    }

    /// Dials `host_port` from `guest_port`, 0 for any; returns what came of it.
    fn dial(&mut self, host_port: u32, guest_port: u32) -> Result<String> {
        let stdin = self.container.stdin.as_mut().context("no standard input")?;
        writeln!(stdin, "{host_port} {guest_port}")?;
        self.container.line()
    }

    fn call<A: Message>(&self, method: &str, request: &impl Message) -> Result<A> {
        let answer: Result<A, ttrpc::Status> = task::call(&self.container.id, method, request)?;
        answer.map_err(|status| anyhow!("{method}: {status:?}"))
    }

    /// Adds the exec process `exec`, which prints a word, and whose output goes to the file `output`.
    fn add_exec(&self, exec: &str, output: &Path) -> Result<()> {
        let process = json!({"args": ["echo", "secret"], "cwd": "/", "env": ["PATH=/bin"]});
        let _: Empty = self.call(
            "Exec",
            &ExecProcessRequest {
                id: self.container.id.clone(),
                exec_id: exec.to_owned(),
                stdout: format!("file://{}", output.display()),
                spec: MessageField::some(Any {
                    value: process.to_string().into_bytes(),
                    ..Any::default()
                }),
                ..ExecProcessRequest::default()
            },
        )?;
        Ok(())
    }

    fn start_exec(&self, exec: &str) -> Result<StartResponse> {
        self.call(
            "Start",
            &StartRequest {
                id: self.container.id.clone(),
                exec_id: exec.to_owned(),
                ..StartRequest::default()
            },
        )
    }

    /// Waits for the end of an exec process and deletes it, which waits for its output.
    fn end_exec(&self, exec: &str) -> Result<u32> {
        let (id, exec_id) = (self.container.id.clone(), exec.to_owned());
        let _: WaitResponse = self.call(
            "Wait",
            &WaitRequest {
                id: id.clone(),
                exec_id: exec_id.clone(),
                ..WaitRequest::default()
            },
        )?;
        let deleted: DeleteResponse = self.call(
            "Delete",
            &DeleteRequest {
                id,
                exec_id,
                ..DeleteRequest::default()
            },
        )?;
        Ok(deleted.exit_status)
    }
}

/// The streams that the VMM expects, read from the memory that it shares with the engine.
fn expected_streams() -> Result<Vec<StreamAddress>> {
    let vmm = only_process("nacre-vmm")?;
    for entry in fs::read_dir(format!("/proc/{vmm}/fd"))? {
        let path = entry?.path();
        let is_table = |file: &Path| file.to_string_lossy().starts_with("/memfd:nacre-streams");
        if fs::read_link(&path).is_ok_and(|file| is_table(&file)) {
            let mut table = vec![0; usize::try_from(TABLE_BYTES)?];
            File::open(&path)?.read_exact_at(&mut table, 0)?;
            let slots = table.as_chunks().0.iter().map(|slot| u64::from_le_bytes(*slot));
            return Ok(slots.filter_map(StreamAddress::from_bits).collect());
        }
    }
    Err(anyhow!("the VMM {vmm} has no table of streams"))
}

fn streams_stay_with_their_process() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (output, stolen) = (directory.path().join("output"), directory.path().join("stolen"));
    let mut stranger = Stranger::start()?;
    ensure!(
        expected_streams()?.is_empty(),
        "a stream is expected before an exec"
    );
    stranger.add_exec("victim", &output)?;
    let expected = expected_streams()?;
    ensure!(expected.len() == 1, "{expected:?}");
    let StreamAddress {
        host_port,
        guest_port,
    } = expected[0];
    for (host, guest) in [
        (host_port, 0),
        (host_port + 1, guest_port),
        (host_port - 1, guest_port),
        (host_port, guest_port + 1),
        (host_port, guest_port - 1),
        (guest_port, host_port),
        (AGENT_PORT, 0),
        (AGENT_PORT, guest_port),
    ] {
        let dialed = stranger.dial(host, guest)?;
        ensure!(dialed == REFUSED, "{host} from {guest}: {dialed}");
    }
    stranger.start_exec("victim")?;
    ensure!(stranger.end_exec("victim")? == 0, "the exec process failed");
    let got = fs::read_to_string(&output)?;
    ensure!(got == "secret\n", "{got:?}");
    // The address is good for one connection.
    let again = stranger.dial(host_port, guest_port)?;
    ensure!(again == REFUSED, "{again}");

    // Whoever knows the address gets the stream, so the refusals above are not those of a process that can't
    // dial.
    stranger.add_exec("known", &stolen)?;
    let known = *expected_streams()?.first().context("no stream is expected")?;
    let dialed = stranger.dial(known.host_port, known.guest_port)?;
    ensure!(dialed == "connected", "{dialed}");
    ensure!(
        stranger.start_exec("known").is_err(),
        "an exec without its stream was started"
    );
    stranger.end_exec("known")?;
    let Stranger { container, .. } = stranger;
    let ended = container.wait_with_output()?;
    ensure!(ended.code == Some(0), "{ended:?}");
    Ok(())
}
