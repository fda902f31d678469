//! virtio-net (virtio 1.2, 5.1) over taps of the host: Ethernet frames, each with a header that describes
//! checksums and segments left to the other side. Created by [`crate::shim_managed`] and the standalone mode,
//! served by a worker. It opens no network interface: it gets the taps as descriptors.
//!
//! [`receive`] reads packets from a tap straight into the guest's buffers, [`transmit`] writes them straight
//! from there; [`tap`] has the system calls, one per packet. The tap is edge-triggered in the worker's epoll
//! set: it is read until it is empty, or until the guest has no more buffers; then packets wait in the tap.

mod receive;
mod tap;
#[cfg(test)]
pub(crate) mod tests;
mod transmit;

use std::os::fd::OwnedFd;

use nacre_protocol::control::{MAX_TAPS, MIN_MTU};
use virtio_bindings::bindings::virtio_net as bits;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use vmm_sys_util::epoll::EventSet;

use self::receive::{Received, Receiver};
use self::tap::{HEADER_BYTES, Tap};
pub use self::tap::{TapError, open_tap};
use self::transmit::{LARGEST, Transmitter};
use super::worker::{ActiveDevice, DataPath, Fault};
use super::{Device, DeviceError, Env, Spec};
use crate::jail::calls::net::PROFILE;
use crate::log::LimitedLog;

/// Packets to the guest (virtio 1.2, 5.1.2).
const RX: u16 = 0;
/// Packets from the guest.
const TX: u16 = 1;
/// The size of each queue.
const QUEUE_SIZE: u16 = 256;
/// What is waited for on a tap: packets.
const TAP_EVENTS: EventSet = EventSet::IN.union(EventSet::EDGE_TRIGGERED);
/// The tap's token in the worker's epoll set.
const TAP: u64 = 0;
/// Most packets of an earlier driver that are dropped when another one starts: more than a tap holds.
const MAX_STALE: usize = 4096;
/// Bytes of an Ethernet header with a VLAN tag.
const ETHERNET_BYTES: u32 = 18;

/// Offset of `status` in the configuration space (virtio 1.2, 5.1.4).
const STATUS: u64 = 6;

/// Feature bits (virtio 1.2, 5.1.3) that are always offered. UFO is not: Linux neither uses nor offers it for
/// a guest any more; USO came with Linux 6.2, later than the guest's kernel.
const FEATURES: [u32; 12] = [
    bits::VIRTIO_NET_F_CSUM,
    bits::VIRTIO_NET_F_GUEST_CSUM,
    bits::VIRTIO_NET_F_MTU,
    bits::VIRTIO_NET_F_MAC,
    bits::VIRTIO_NET_F_GUEST_TSO4,
    bits::VIRTIO_NET_F_GUEST_TSO6,
    bits::VIRTIO_NET_F_GUEST_ECN,
    bits::VIRTIO_NET_F_HOST_TSO4,
    bits::VIRTIO_NET_F_HOST_TSO6,
    bits::VIRTIO_NET_F_HOST_ECN,
    bits::VIRTIO_NET_F_MRG_RXBUF,
    bits::VIRTIO_NET_F_STATUS,
];

/// The device's configuration, checked.
#[derive(Debug)]
pub struct Config {
    tap: Tap,
    mac: [u8; 6],
    mtu: u16,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There must be a tap, and at most as many as the device has queue pairs.
    #[error("net: expected 1 to {MAX_TAPS} taps, got {0}")]
    Taps(usize),
    /// A descriptor is not a tap of the required kind.
    #[error("net: {0}")]
    Tap(#[from] TapError),
    /// The address is a multicast address or all zeros.
    #[error("net: {0:02x?} is not the address of one station")]
    Mac([u8; 6]),
    /// The MTU is below [`MIN_MTU`].
    #[error("net: expected an MTU of at least {MIN_MTU}, got {0}")]
    Mtu(u16),
}

impl Config {
    /// Checks the address and the MTU, and that the descriptors are taps.
    ///
    /// # Errors
    /// [`ConfigError`] with the first value that is refused.
    pub fn new(taps: Vec<OwnedFd>, mac: [u8; 6], mtu: u16) -> Result<Self, ConfigError> {
        let count = taps.len();
        let [tap] = <[OwnedFd; 1]>::try_from(taps).map_err(|_| ConfigError::Taps(count))?;
        let [first, ..] = mac;
        if first & 1 != 0 || mac == [0; 6] {
            return Err(ConfigError::Mac(mac));
        }
        if mtu < MIN_MTU {
            return Err(ConfigError::Mtu(mtu));
        }
        let tap = Tap::new(tap)?;
        Ok(Self { tap, mac, mtu })
    }

    /// The configuration space (virtio 1.2, 5.1.4): the address, the status (the link is up), the number of
    /// queue pairs, the MTU.
    fn space(&self) -> Vec<u8> {
        let (status, pairs) = (1_u16.to_le_bytes(), 1_u16.to_le_bytes());
        [&self.mac[..], &status, &pairs, &self.mtu.to_le_bytes()].concat()
    }
}

/// Creates the device, with two queues, and spawns its worker.
///
/// # Errors
/// [`DeviceError`] if the worker can't be spawned.
pub fn spawn(config: Config, env: &Env) -> Result<Device, DeviceError> {
    let spec = Spec {
        name: "net",
        device_type: VIRTIO_ID_NET,
        queue_sizes: vec![QUEUE_SIZE; 2],
        features: FEATURES
            .into_iter()
            .fold(0, |features, bit| features | feature(bit)),
        config: config.space(),
        config_writable: 0..0,
        profile: &PROFILE,
    };
    Device::spawn(spec, env, move || {
        Ok(NetDataPath {
            tap: config.tap,
            mtu: config.mtu,
            pair: None,
            was_active: false,
            log: LimitedLog::new(),
        })
    })
}

/// The bit of a feature. Of the numbers above, none is beyond 63.
const fn feature(bit: u32) -> u64 {
    1_u64.wrapping_shl(bit)
}

/// The two sides of a queue pair.
struct Pair {
    receiver: Receiver,
    transmitter: Transmitter,
}

struct NetDataPath {
    tap: Tap,
    mtu: u16,
    /// While the device is active.
    pair: Option<Pair>,
    /// A driver has used the device before, and may have left packets in the tap.
    was_active: bool,
    log: LimitedLog,
}

impl DataPath for NetDataPath {
    fn start(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        let has = |bit| active.features & feature(bit) != 0;
        self.tap
            .set_offload(offloads(active.features))
            .map_err(Fault::io("set the tap's offloads"))?;
        if std::mem::replace(&mut self.was_active, true) {
            // They may be larger than what this driver accepts.
            (0..MAX_STALE)
                .take_while(|_| self.tap.discard().is_ok())
                .for_each(drop);
        }
        let large = has(bits::VIRTIO_NET_F_GUEST_TSO4) || has(bits::VIRTIO_NET_F_GUEST_TSO6);
        let frame = u32::from(self.mtu)
            .saturating_add(HEADER_BYTES)
            .saturating_add(ETHERNET_BYTES);
        let largest = if large { LARGEST } else { frame };
        self.pair = Some(Pair {
            receiver: Receiver::new(RX, has(bits::VIRTIO_NET_F_MRG_RXBUF), largest, active),
            transmitter: Transmitter::new(TX, active),
        });
        active
            .poller
            .add(&self.tap, TAP, TAP_EVENTS)
            .map_err(Fault::io("watch the tap"))?;
        // A driver need not make all queues ready.
        if active.is_ready(RX) {
            active.disable_notification(RX)
        } else {
            Ok(())
        }
    }

    fn on_queue(&mut self, index: u16, active: &mut ActiveDevice) -> Result<(), Fault> {
        match index {
            TX => self.transmit(active),
            _ => self.receive(active),
        }
    }

    fn on_event(&mut self, _token: u64, ready: EventSet, active: &mut ActiveDevice) -> Result<(), Fault> {
        if let Some(pair) = &mut self.pair {
            pair.receiver.set_readable();
            if ready.contains(EventSet::OUT) && pair.transmitter.set_writable() {
                self.transmit(active)?;
            }
        }
        if active.is_ready(RX) {
            self.receive(active)
        } else {
            Ok(())
        }
    }

    fn on_memory(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        if let Some(pair) = &mut self.pair {
            pair.receiver.set_memory(&active.memory);
            pair.transmitter.set_memory(&active.memory);
        }
        Ok(())
    }

    fn stop(&mut self, active: &mut ActiveDevice) {
        self.pair = None;
        // Fails if `start` could not add it.
        let _ = active.poller.remove(&self.tap);
    }
}

impl NetDataPath {
    fn receive(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        let Some(pair) = &mut self.pair else {
            return Ok(());
        };
        if pair.receiver.receive(&self.tap, active)? == Received::Gone {
            self.log
                .write(|| "virtio net: the tap's network interface was removed; the link is down".to_owned());
            // Cannot fail: the field exists.
            let _ = active.config.update(STATUS, &[0, 0]);
        }
        Ok(())
    }

    fn transmit(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        match &mut self.pair {
            Some(pair) => pair.transmitter.transmit(&self.tap, TAP, &self.log, active),
            None => Ok(()),
        }
    }
}

/// The tap's offloads (TUN_F_*) for the features that the driver accepted: what the guest takes.
fn offloads(features: u64) -> u32 {
    let flag = |bit, flag| if features & feature(bit) != 0 { flag } else { 0 };
    // The others require it (virtio 1.2, 5.1.3.1).
    let checksum = flag(bits::VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM);
    let segments = flag(bits::VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4)
        | flag(bits::VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6);
    let ecn = flag(bits::VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN);
    match (checksum, segments) {
        (0, _) => 0,
        (checksum, 0) => checksum,
        (checksum, segments) => checksum | segments | ecn,
    }
}
