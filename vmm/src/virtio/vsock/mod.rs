//! virtio-vsock (virtio 1.2, 5.10): stream sockets between guest and host, muxed in this process onto Unix sockets.
//! Made by the VM's device list, served on its own worker. No vhost, no host-wide CID.
//!
//! A REQUEST from the guest to the host (CID 2) makes a pair of Unix sockets: one end stays in the [`muxer`], the other
//! goes to [`Host`]. With [`Config::listener`], for use by hand, whoever connects to that socket and writes
//! `CONNECT <port>\n` is connected to that port of the guest, and reads `OK <host port>\n` first.
//!
//! [`packet`] is what goes over the queues, [`state`] a connection's life and credit, both pure; [`connection`] adds
//! the stream.

mod connection;
mod greeting;
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

use super::worker::{Active, DataPath, Fault, Notify, Worker};
use super::{Activation, DeviceError, Env, VirtioDevice, read_config_from};
use crate::jail::ThreadKind;
use muxer::Muxer;
pub use packet::Ports;
use packet::{MAX_PAYLOAD, Packet};

/// Most connections at a time, with those whose last bytes the host has not read. Each holds at most
/// 256 KiB here.
pub const MAX_CONNECTIONS: usize = 256;

const NAME: &str = "vsock";
const RX: u16 = 0;
const TX: u16 = 1;
const QUEUE_SIZES: &[u16] = &[256, 256, 16];
/// Token of the listener; connections have those from the next on.
const LISTENER: u64 = 0;
/// Packets to the guest between two looks at whether it wants an interrupt.
const BATCH: u32 = 32;
/// Packets to the guest after which the worker looks at other events first.
const TURN: u32 = 512;

/// Where connections of the guest go.
pub trait Host: Send {
    /// The guest opened a connection between `ports`; `stream` is the host's end, blocking. Called on the device's worker.
    ///
    /// # Errors
    /// [`Refused`] where nobody is there for the port; the guest sees its connection reset.
    fn connect(&mut self, ports: Ports, stream: OwnedFd) -> Result<(), Refused>;
}

/// Nobody takes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// Refuses every connection of the guest.
#[derive(Debug, Clone, Copy)]
pub struct Nobody;

impl Host for Nobody {
    fn connect(&mut self, _ports: Ports, _stream: OwnedFd) -> Result<(), Refused> {
        Err(Refused)
    }
}

/// What a vsock device is made with.
pub struct Config {
    /// Takes the guest's connections.
    pub host: Box<dyn Host>,
    /// Accepts connections into the guest, for use by hand; non-blocking.
    pub listener: Option<UnixListener>,
}

/// The device.
pub struct Vsock {
    worker: Worker,
}

impl Vsock {
    /// Makes the device with its worker.
    ///
    /// # Errors
    /// Where the worker can't be started.
    pub fn new(config: Config, env: &Env) -> Result<Self, DeviceError> {
        let build = move || {
            let muxer = Muxer::new(config.host, LISTENER.wrapping_add(1));
            Ok(Streams {
                muxer,
                listener: config.listener,
            })
        };
        let worker = Worker::spawn(NAME, ThreadKind::Device, env, build)?;
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

/// The data path.
struct Streams {
    muxer: Muxer,
    listener: Option<UnixListener>,
}

impl DataPath for Streams {
    fn start(&mut self, active: &mut Active) -> Result<(), Fault> {
        if let Some(listener) = &self.listener {
            active
                .poller
                .add(listener, LISTENER, EventSet::IN)
                .map_err(|error| Fault::new("waiting on the listener", error))?;
        }
        active.mute(RX)
    }

    fn on_queue(&mut self, index: u16, active: &mut Active) -> Result<(), Fault> {
        if index == TX {
            self.take_packets(active)?;
        }
        // Nothing is ever put into the event queue: its one event is for migration.
        self.give_packets(active)
    }

    fn on_device(&mut self, token: u64, ready: EventSet, active: &mut Active) -> Result<(), Fault> {
        if token != LISTENER {
            self.muxer.on_stream(token, ready, &active.poller);
        } else if let Some(Ok((stream, _))) = self.listener.as_ref().map(UnixListener::accept) {
            self.muxer.greeted_by(stream, &active.poller);
        }
        self.give_packets(active)
    }

    fn stop(&mut self, active: &mut Active) {
        self.muxer.clear();
        if let Some(listener) = &self.listener {
            // Not there where start failed.
            let _ = active.poller.remove(listener);
        }
    }
}

impl Streams {
    /// Takes what the guest sends. A chain that is no packet is dropped.
    fn take_packets(&mut self, active: &mut Active) -> Result<(), Fault> {
        let poller = Arc::clone(&active.poller);
        let muxer = &mut self.muxer;
        active.serve(TX, Notify::AtEnd, |memory, mut chain| {
            if let Ok(packet) = Packet::from_tx_virtq_chain(&**memory, &mut chain, MAX_PAYLOAD) {
                muxer.receive(&packet, &poller);
            }
            0
        })
    }

    /// Gives the guest what it is owed, as long as it has buffers. The guest kicks for new ones only where some were
    /// missing.
    fn give_packets(&mut self, active: &mut Active) -> Result<(), Fault> {
        let memory = Arc::clone(&active.memory);
        let mut pushed = 0_u32;
        while self.muxer.has_something() {
            let Some(mut chain) = active.pop(RX)? else {
                if active.unmute(RX)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let written = match Packet::from_rx_virtq_chain(&*memory, &mut chain, u32::MAX) {
                // Too small or not writable: goes back unused.
                Err(_) => Some(0),
                Ok(mut packet) => self.muxer.next_packet(&mut packet),
            };
            let Some(written) = written else {
                active.unpop(RX)?;
                break;
            };
            active.push(RX, head, written)?;
            pushed = pushed.wrapping_add(1);
            if pushed.is_multiple_of(BATCH) {
                active.notify(RX)?;
            }
            if pushed >= TURN {
                active.again(RX)?;
                break;
            }
        }
        active.notify(RX)
    }
}
