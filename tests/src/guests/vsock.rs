//! vsock in the guest: the workload's side of a conversation with its test. Called by workloads only.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nacre_protocol::vsock::{AGENT_PORT, HOST_CID};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, listen, socket,
};

/// The guest's port at which a workload listens.
pub const PORT: u32 = 5000;

/// A workload that is connected with its test.
pub struct Conversation {
    /// The connection that the test opened.
    pub stream: File,
    /// The connection to the agent's port; it stays open, as an agent's does.
    _ready: File,
}

impl Conversation {
    /// Listens at [`PORT`], reports by dialing the agent's port that the guest is ready, and waits for the
    /// test to connect.
    ///
    /// # Errors
    /// If the VM has no vsock device.
    pub fn accept() -> Result<Self> {
        let listener = new_socket()?;
        bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, PORT))
            .context("binding a vsock port")?;
        listen(&listener, Backlog::new(1)?)?;
        let ready = dial_agent_port()?;
        let stream = rustix::net::accept(&listener).context("accepting the test's connection")?;
        Ok(Self {
            stream: stream.into(),
            _ready: ready,
        })
    }
}

/// Dials the agent's port, which the VMM reports.
///
/// # Errors
/// If the VM has no vsock device.
pub fn dial_agent_port() -> Result<File> {
    let socket = new_socket()?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, AGENT_PORT)).context("dialing the agent's port")?;
    Ok(socket.into())
}

fn new_socket() -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
}
