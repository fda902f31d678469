//! What the standalone mode does with the guest's vsock connections: it accepts them and keeps them open.
//! Only the agent's is read, by [`super::save`].

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use nacre_protocol::vsock::AGENT_PORT;
use nacre_vmm::virtio::vsock;
use nacre_vmm::vm_exit::borrow_eventfd;
use vmm_sys_util::eventfd::EventFd;

/// How many of the guest's vsock connections are accepted in all; each costs a descriptor.
const MAX_STREAMS: usize = 64;

/// Accepts the guest's vsock connections; prints when the agent connects. On the device's worker thread.
pub struct StreamAcceptor {
    guest_started: Arc<OnceLock<Instant>>,
    agent: Agent,
    streams: Vec<OwnedFd>,
}

/// The last connection to the agent's port, as the main thread sees it.
pub struct Agent {
    /// Written when the agent has connected.
    connected: EventFd,
    stream: Arc<Mutex<Option<OwnedFd>>>,
}

impl Agent {
    /// Readable once the agent has connected.
    pub fn connected(&self) -> BorrowedFd<'_> {
        borrow_eventfd(&self.connected)
    }

    /// Takes the host's end of the agent's stream, once that has connected. The next one is another one.
    pub fn take_stream(&self) -> Option<OwnedFd> {
        // Fails if it is not readable.
        let _ = self.connected.read();
        lock(&self.stream).take()
    }
}

impl StreamAcceptor {
    /// An acceptor, which counts the time from `guest_started`, and what it reports of the agent.
    pub fn new(guest_started: Arc<OnceLock<Instant>>) -> anyhow::Result<(Self, Agent)> {
        let connected =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).context("creating an eventfd")?;
        let stream = Arc::default();
        let agent = Agent {
            connected: connected.try_clone()?,
            stream: Arc::clone(&stream),
        };
        let acceptor = Self {
            guest_started,
            agent: Agent { connected, stream },
            streams: Vec::new(),
        };
        Ok((acceptor, agent))
    }
}

fn lock(stream: &Mutex<Option<OwnedFd>>) -> MutexGuard<'_, Option<OwnedFd>> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

impl vsock::Host for StreamAcceptor {
    fn expects(&mut self, _ports: vsock::Ports) -> bool {
        self.streams.len() < MAX_STREAMS
    }

    fn connect(&mut self, ports: vsock::Ports, stream: OwnedFd) -> Result<(), vsock::Refused> {
        if ports.host != AGENT_PORT {
            self.streams.push(stream);
            return Ok(());
        }
        self.streams.extend(lock(&self.agent.stream).replace(stream));
        let started = self.guest_started.get();
        let ms = started.map_or(0, |started| started.elapsed().as_millis());
        eprintln!("nacre-vmm: the agent connected {ms} ms after the guest's first instruction");
        if let Err(error) = self.agent.connected.write(1) {
            eprintln!("nacre-vmm: waking the main thread: {error}");
        }
        Ok(())
    }
}
