//! The target of the agent's stream: any bytes after the shim's calls. An input is a list of ttrpc frames, most
//! of which answer a call that waits.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use nacre_protocol::agent::{
    ContainerStatsResponse, CreateContainerRequest, Family, Network, PluggedMemory, Stdio,
};
use nacre_protocol::vsock::StreamAddress;
use protobuf::Message as _;
use tokio::io::AsyncWriteExt as _;

use nacre_fuzzing::Input;

use super::sized;
use crate::guest::{CallError, Guest, SIGKILL};
use crate::guest_text::{MAX_MESSAGE, MAX_NAME};
use crate::pod_spec::PodSpec;
use crate::process_id::ProcessId;
use crate::scheduling::Scheduled;

/// Frames are sent until they are this long together: less than the socket holds.
const MAX_BYTES: usize = 128 << 10;
/// ttrpc: a response, and a data frame.
const RESPONSE: u8 = 2;
const DATA: u8 = 3;

pub fn agent(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let frames = frames(data);
    runtime.block_on(async {
        let (ours, agent) = UnixStream::pair().unwrap();
        agent.set_nonblocking(true).unwrap();
        let mut agent = tokio::net::UnixStream::from_std(agent).unwrap();
        let guest = Guest::new(OwnedFd::from(ours), Scheduled::default()).unwrap();
        tokio::join!(lives(&guest), asks(&guest), waits(&guest), async {
            // Fails if the client has given up. The end of the stream ends every call.
            let _ = agent.write_all(&frames).await;
            let _ = agent.shutdown().await;
        });
    });
}

/// The calls of a container's life.
async fn lives(guest: &Guest) {
    let spec = PodSpec::default();
    if let Some(setup) = checked(guest.setup("host", Network::new(), &spec).await) {
        assert!(setup.build_id.len() <= MAX_NAME && setup.kernel_release.len() <= MAX_NAME);
    }
    let request = CreateContainerRequest {
        container_id: "c".to_owned(),
        ..Default::default()
    };
    checked(guest.create(request).await);
    checked(guest.start("c").await);
    let exec = ProcessId {
        container: "c".to_owned(),
        exec: "e".to_owned(),
    };
    checked(guest.start_exec(&exec, Vec::new(), Stdio::new()).await);
    checked(guest.kill(&exec, SIGKILL, false).await);
    checked(guest.delete("c").await);
}

/// Calls with answers of their own.
async fn asks(guest: &Guest) {
    checked(guest.stats("c").await);
    checked(guest.resize_vm(2, PluggedMemory::new()).await);
    checked(guest.update("c", Vec::new()).await);
    if let Some(changed) = checked(guest.change_mirror(1, Vec::new()).await) {
        assert!(changed.error.len() <= MAX_MESSAGE);
    }
    checked(guest.correct_clock().await);
    guest.answers().await;
}

/// Calls without a deadline.
async fn waits(guest: &Guest) {
    let (init, stream) = (ProcessId::init("c"), StreamAddress::from_bits(1 << 60 | 1 << 30));
    tokio::join!(
        async {
            if let Some(exit) = checked(guest.wait(&init).await) {
                assert!(exit.status <= 255, "exit status {}", exit.status);
            }
        },
        async { checked(guest.wait_oom("c", 0).await).is_some() },
        async { checked(guest.wait_memory(PluggedMemory::new()).await).is_some() },
        async { checked(guest.forward(Family::IPV4, 80, stream.unwrap()).await).is_some() },
    );
}

/// The answer. Texts in an error are bounded.
fn checked<T>(result: Result<T, CallError>) -> Option<T> {
    match result {
        Ok(answer) => Some(answer),
        Err(CallError::Answer(_, message)) => {
            assert!(message.len() <= MAX_MESSAGE);
            None
        }
        Err(CallError::Lost(reason)) => {
            assert!(reason.len() <= 2 * MAX_MESSAGE, "{} bytes", reason.len());
            None
        }
        Err(CallError::TimedOut) => None,
    }
}

/// The bytes that `data` describes.
fn frames(data: &[u8]) -> Vec<u8> {
    let mut input = Input(data);
    let mut bytes = Vec::new();
    while !input.is_empty() && bytes.len() < MAX_BYTES {
        let (kind, stream) = (input.u8(), input.u8());
        // The client numbers its calls 1, 3, 5, ….
        let stream = u32::from(stream) * 2 + 1;
        match kind % 8 {
            0 => bytes.extend(input.bytes(10)),
            1 => frame(&mut bytes, stream, DATA, sized(&mut input)),
            2 => frame(&mut bytes, stream, kind, sized(&mut input)),
            3 => {
                let mut response = ttrpc::Response::new();
                let message = String::from_utf8_lossy(sized(&mut input)).into_owned();
                let code = ttrpc::Code::NOT_FOUND;
                response.set_status(ttrpc::get_status(code, message));
                frame(&mut bytes, stream, RESPONSE, &response.write_to_bytes().unwrap());
            }
            4 => {
                let mut stats = ContainerStatsResponse::new();
                let name = String::from_utf8_lossy(sized(&mut input)).into_owned();
                stats.files.insert(name, sized(&mut input).to_vec());
                respond(&mut bytes, stream, &stats.write_to_bytes().unwrap());
            }
            _ => respond(&mut bytes, stream, sized(&mut input)),
        }
    }
    bytes
}

/// Appends an answer whose message is `payload`.
fn respond(bytes: &mut Vec<u8>, stream: u32, payload: &[u8]) {
    let mut response = ttrpc::Response::new();
    response.payload = payload.to_vec();
    frame(bytes, stream, RESPONSE, &response.write_to_bytes().unwrap());
}

/// Appends a frame with the right length.
fn frame(bytes: &mut Vec<u8>, stream: u32, kind: u8, payload: &[u8]) {
    bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes.extend(payload);
}
