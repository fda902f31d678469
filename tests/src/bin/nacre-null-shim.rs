//! A containerd shim that runs nothing: it answers every call of the Task service at once with a fixed reply.
//! What `ctr run` and `ctr task exec` take with it is what ctr and containerd take themselves: the floor of
//! nacre-bench.
//!
//! containerd executes it as it does any shim (`--runtime /path/of/nacre-null-shim`). It never opens a
//! container's streams, publishes no event, and reports every process as stopped.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use containerd_shim_protos::api::{
    ConnectResponse, CreateTaskResponse, DeleteResponse, Empty, StartResponse, StateResponse, Status,
    WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use ttrpc::MessageHeader;
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_RESPONSE};

/// Where containerd keeps the sockets of shims.
const SOCKETS: &str = "/run/containerd/s";
/// The argument that makes this program the server, with the listening socket as its standard input.
const SERVE: &str = "serve";

fn main() -> Result<()> {
    match std::env::args().next_back().as_deref() {
        Some("start") => start(),
        Some("delete") => Ok(std::io::stdout().write_all(&deleted().write_to_bytes()?)?),
        Some(SERVE) => serve(),
        _ => bail!("usage: containerd executes this program as a shim, with `start` or `delete`"),
    }
}

/// Starts the server and prints its address.
fn start() -> Result<()> {
    let path = PathBuf::from(SOCKETS).join(format!("null-{}", std::process::id()));
    fs::create_dir_all(SOCKETS)?;
    let listener = UnixListener::bind(&path).with_context(|| format!("binding {}", path.display()))?;
    Command::new(std::env::current_exe()?)
        .arg(SERVE)
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting the server")?;
    print!("unix://{}", path.display());
    Ok(())
}

/// Answers the calls of one connection at a time until Shutdown.
fn serve() -> Result<()> {
    let listener = UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    loop {
        let (connection, _) = listener.accept()?;
        if answer_all(connection)? {
            if let Some(path) = listener.local_addr()?.as_pathname() {
                fs::remove_file(path)?;
            }
            return Ok(());
        }
    }
}

/// Answers calls until the connection ends; true if one of them was Shutdown.
fn answer_all(mut connection: UnixStream) -> Result<bool> {
    let mut header = [0; MESSAGE_HEADER_LENGTH];
    loop {
        match connection.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let request = MessageHeader::from(header);
        let length = usize::try_from(request.length)?;
        if length > MESSAGE_LENGTH_MAX {
            bail!("a request of {length} bytes; at most {MESSAGE_LENGTH_MAX} are allowed");
        }
        let mut body = vec![0; length];
        connection.read_exact(&mut body)?;
        let method = ttrpc::Request::parse_from_bytes(&body)?.method;
        let response = ttrpc::Response {
            payload: reply(&method)?,
            ..ttrpc::Response::default()
        }
        .write_to_bytes()?;
        let mut frame = Vec::from(MessageHeader {
            length: u32::try_from(response.len())?,
            stream_id: request.stream_id,
            type_: MESSAGE_TYPE_RESPONSE,
            flags: 0,
        });
        frame.extend(response);
        connection.write_all(&frame)?;
        if method == "Shutdown" {
            return Ok(true);
        }
    }
}

/// The fixed reply to `method`.
fn reply(method: &str) -> Result<Vec<u8>> {
    let pid = std::process::id();
    let reply = match method {
        "Create" => CreateTaskResponse {
            pid,
            ..CreateTaskResponse::default()
        }
        .write_to_bytes(),
        "Start" => StartResponse {
            pid,
            ..StartResponse::default()
        }
        .write_to_bytes(),
        "State" => StateResponse {
            pid,
            status: Status::STOPPED.into(),
            exited_at: time(),
            ..StateResponse::default()
        }
        .write_to_bytes(),
        "Wait" => WaitResponse {
            exited_at: time(),
            ..WaitResponse::default()
        }
        .write_to_bytes(),
        "Delete" => deleted().write_to_bytes(),
        "Connect" => ConnectResponse {
            shim_pid: pid,
            task_pid: pid,
            ..ConnectResponse::default()
        }
        .write_to_bytes(),
        _ => Empty::default().write_to_bytes(),
    };
    Ok(reply?)
}

fn deleted() -> DeleteResponse {
    DeleteResponse {
        pid: std::process::id(),
        exited_at: time(),
        ..DeleteResponse::default()
    }
}

/// Some valid time.
fn time() -> MessageField<Timestamp> {
    MessageField::some(Timestamp {
        seconds: 1,
        ..Timestamp::default()
    })
}
