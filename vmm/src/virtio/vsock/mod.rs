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
//! are pure. [`connection`] adds the stream. [`buffers`] is a packet in guest memory.

mod buffers;
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

use nacre_protocol::vsock::{GUEST_CID, MAX_CONNECTIONS};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::epoll::EventSet;

use super::worker::{ActiveDevice, DataPath, Fault, Notify};
use super::{Device, DeviceError, Env, Spec};
use crate::jail::calls::vsock::{PROFILE, STANDALONE};
use buffers::BufferList;
use muxer::Muxer;
pub use packet::Ports;

/// Packets to the guest (virtio 1.2, 5.10.2).
const RX: u16 = 0;
/// Packets from the guest.
const TX: u16 = 1;
/// Events to the guest.
const EVENT: u16 = 2;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET: all connections are gone, and the CID may be another one (virtio 1.2,
/// 5.10.6.7).
const TRANSPORT_RESET: u32 = 0;
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
    /// Whether to accept a connection between `ports`. Called before anything is created for it, on the
    /// device's worker thread, under its seccomp filter.
    fn expects(&mut self, ports: Ports) -> bool;

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

/// The configuration of the device.
pub struct Config {
    /// Accepts the guest's connections.
    pub host: Box<dyn Host>,
    /// Accepts connections to the guest; for a standalone VMM. Must be non-blocking.
    pub listener: Option<UnixListener>,
}

/// Creates the device, with three queues, and spawns its worker.
///
/// # Errors
/// [`DeviceError`] if the worker can't be spawned.
pub fn spawn(config: Config, env: &Env) -> Result<Device, DeviceError> {
    let spec = Spec {
        name: "vsock",
        device_type: VIRTIO_ID_VSOCK,
        queue_sizes: QUEUE_SIZES.to_vec(),
        features: 0,
        // The guest's CID (virtio 1.2, 5.10.4).
        config: u64::from(GUEST_CID).to_le_bytes().to_vec(),
        config_writable: 0..0,
        profile: match config.listener {
            None => &PROFILE,
            Some(_) => &STANDALONE,
        },
    };
    Device::spawn(spec, env, move || {
        Ok(VsockDataPath {
            muxer: Muxer::new(config.host, LISTENER.wrapping_add(1)),
            listener: config.listener,
            buffers: BufferList::default(),
        })
    })
}

/// The muxer, the listener of a standalone VMM, and the buffers of the packet at hand.
struct VsockDataPath {
    muxer: Muxer,
    listener: Option<UnixListener>,
    buffers: BufferList,
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
        // What the driver puts into the event queue stays there until the VM is restored from a snapshot.
        self.send_packets(active)
    }

    fn on_restored(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        let Some(chain) = active.pop(EVENT)? else {
            return Err(Fault::NoBuffer(EVENT));
        };
        let (head, memory) = (chain.head_index(), Arc::clone(&active.memory));
        let event = TRANSPORT_RESET.to_le_bytes();
        let written = self.buffers.writable(&memory, chain).write(&event);
        let length = u32::try_from(event.len()).unwrap_or_default();
        active.push(EVENT, head, written.map_or(0, |()| length))?;
        active.notify(EVENT)
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
    /// Handles the packets in the tx queue, one per chain.
    fn receive_packets(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        let poller = Arc::clone(&active.poller);
        let (muxer, buffers) = (&mut self.muxer, &mut self.buffers);
        active.serve(TX, Notify::AtEnd, |memory, chain| {
            muxer.receive(buffers.readable(memory, chain), &poller);
            0
        })
    }

    /// Writes pending packets to the rx queue while it has buffers. The driver kicks for new buffers only if
    /// they ran out while packets were pending.
    fn send_packets(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        let memory = Arc::clone(&active.memory);
        let mut pushed = 0_u32;
        while self.muxer.has_packet() {
            let Some(chain) = active.pop(RX)? else {
                if active.enable_notification(RX)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let packet = self.buffers.writable(&memory, chain);
            let Some(written) = self.muxer.next_packet(packet) else {
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
