//! virtio-vsock (virtio 1.2, 5.10): stream sockets between guest and host, each connected to a Unix socket by
//! this process. Created by `machine/virtio_devices.rs`, served by a worker. Uses no vhost and no CID of the
//! host's kernel.
//!
//! For a REQUEST from the guest to the host (CID 2), the [`muxer`] creates a pair of Unix sockets, keeps one
//! end and passes the other to [`Host`]. A standalone VMM may have a [`Config::listener`]: a client that
//! connects to it and writes `CONNECT <port>\n` ([`handshake`]) is connected to that port of the guest, and
//! first reads `OK <host port>\n`.
//!
//! [`packet`] parses and encodes headers; [`state`] is a connection's state machine and flow control; both
//! are pure. [`connection`] adds the stream.

mod connection;
mod handshake;
mod muxer;
mod packet;
mod state;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use nacre_protocol::vsock::GUEST_CID;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::epoll::EventSet;

use super::worker::{ActiveDevice, DataPath, Fault, Notify, Worker};
use super::{Activation, DeviceError, Env, VirtioDevice, read_config_from};
use crate::jail::calls;
use muxer::Muxer;
pub use packet::Ports;
use packet::{MAX_PAYLOAD, Packet};

/// Most connections at a time, counting those that are closed but whose last bytes the host has not read.
/// Each buffers at most 256 KiB.
pub const MAX_CONNECTIONS: usize = 256;

const NAME: &str = "vsock";
/// Packets to the guest (virtio 1.2, 5.10.2).
const RX: u16 = 0;
/// Packets from the guest.
const TX: u16 = 1;
/// rx, tx and event queue.
const QUEUE_SIZES: &[u16] = &[256, 256, 16];
/// The listener's token in the worker's epoll set; connections have the following numbers.
const LISTENER: u64 = 0;
/// Packets to the guest after which an interrupt is raised, if the driver wants one.
const PACKETS_PER_INTERRUPT: u32 = 32;
/// Packets to the guest after which the worker handles other events first.
const PACKETS_PER_TURN: u32 = 512;

/// Accepts the guest's connections. Implemented by the control socket to the shim and by the standalone VMM.
pub trait Host: Send {
    /// The guest requests a connection between `ports`; `stream` is the host's end, in blocking mode. Called
    /// on the device's worker thread, under its seccomp filter.
    ///
    /// # Errors
    /// [`Refused`] if the port is not served; the guest gets an RST.
    fn connect(&mut self, ports: Ports, stream: OwnedFd) -> Result<(), Refused>;
}

/// The host does not accept the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// The configuration of a [`Vsock`].
pub struct Config {
    /// Accepts the guest's connections.
    pub host: Box<dyn Host>,
    /// Accepts connections to the guest; for a standalone VMM. Must be non-blocking.
    pub listener: Option<UnixListener>,
}

/// The virtio-vsock device, with three queues.
pub struct Vsock {
    worker: Worker,
}

impl Vsock {
    /// Creates the device and spawns its worker.
    ///
    /// # Errors
    /// [`DeviceError`] if the worker can't be spawned.
    pub fn new(config: Config, env: &Env) -> Result<Self, DeviceError> {
        let profile = match config.listener {
            None => &calls::vsock::PROFILE,
            Some(_) => &calls::vsock::STANDALONE,
        };
        let build = move || {
            let muxer = Muxer::new(config.host, LISTENER.wrapping_add(1));
            Ok(VsockDataPath {
                muxer,
                listener: config.listener,
            })
        };
        let worker = Worker::spawn(NAME, profile, env, build)?;
        Ok(Self { worker })
    }
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &'static str {
        NAME
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    /// virtio 1.2, 5.10.4: the guest's CID.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&u64::from(GUEST_CID).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.worker.activate(activation)
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.worker.reset()
    }
}

/// The muxer, and the listener of a standalone VMM.
struct VsockDataPath {
    muxer: Muxer,
    listener: Option<UnixListener>,
}

impl DataPath for VsockDataPath {
    fn start(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        if let Some(listener) = &self.listener {
            active
                .poller
                .add(listener, LISTENER, EventSet::IN)
                .map_err(Fault::io("watch the listener"))?;
        }
        active.disable_notification(RX)
    }

    fn on_queue(&mut self, index: u16, active: &mut ActiveDevice) -> Result<(), Fault> {
        if index == TX {
            self.receive_packets(active)?;
        }
        // The event queue stays unused: its only event, transport reset, is for migration (virtio 1.2,
        // 5.10.6, "Device Events").
        self.send_packets(active)
    }

    fn on_event(&mut self, token: u64, ready: EventSet, active: &mut ActiveDevice) -> Result<(), Fault> {
        if token != LISTENER {
            self.muxer.on_stream(token, ready, &active.poller);
        } else if let Some(Ok((stream, _))) = self.listener.as_ref().map(UnixListener::accept) {
            self.muxer.start_handshake(stream, &active.poller);
        }
        self.send_packets(active)
    }

    fn stop(&mut self, active: &mut ActiveDevice) {
        self.muxer.clear();
        if let Some(listener) = &self.listener {
            // Fails if `start` could not add it.
            let _ = active.poller.remove(listener);
        }
    }
}

impl VsockDataPath {
    /// Handles the packets in the tx queue. A chain that holds no packet is dropped.
    fn receive_packets(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        let poller = Arc::clone(&active.poller);
        let muxer = &mut self.muxer;
        active.serve(TX, Notify::AtEnd, |memory, mut chain| {
            if let Ok(packet) = Packet::from_tx_virtq_chain(&**memory, &mut chain, MAX_PAYLOAD) {
                muxer.receive(&packet, &poller);
            }
            0
        })
    }

    /// Writes pending packets to the rx queue while it has buffers. The driver kicks for new buffers only if
    /// they ran out while packets were pending.
    fn send_packets(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        let memory = Arc::clone(&active.memory);
        let mut pushed = 0_u32;
        while self.muxer.has_packet() {
            let Some(mut chain) = active.pop(RX)? else {
                if active.enable_notification(RX)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let written = match Packet::from_rx_virtq_chain(&*memory, &mut chain, u32::MAX) {
                // Too small or not writable: returned without data.
                Err(_) => Some(0),
                Ok(mut packet) => self.muxer.next_packet(&mut packet),
            };
            let Some(written) = written else {
                active.undo_pop(RX)?;
                break;
            };
            active.push(RX, head, written)?;
            pushed = pushed.wrapping_add(1);
            if pushed.is_multiple_of(PACKETS_PER_INTERRUPT) {
                active.notify(RX)?;
            }
            if pushed >= PACKETS_PER_TURN {
                active.requeue(RX)?;
                break;
            }
        }
        active.notify(RX)
    }
}
