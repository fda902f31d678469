//! virtio-net (virtio 1.2, 5.1) over taps of the host: Ethernet frames, each with a header that describes
//! checksums and segments left to the other side. Created by [`crate::shim_managed`] and the standalone mode,
//! served by a worker. It opens no network interface: it gets the taps as descriptors.
//!
//! A device with several taps has as many queue pairs and a control queue ([`control`]). One worker serves all
//! [`pair`]s: they spread the guest's work over its vCPUs, not the host's.
//!
//! [`receive`] reads packets from a tap straight into the guest's buffers, [`transmit`] writes them straight
//! from there; [`tap`] has the system calls, one per packet. The tap is edge-triggered in the worker's epoll
//! set: it is read until it is empty, or until the guest has no more buffers; then packets wait in the tap.

mod control;
mod pace;
mod pair;
mod receive;
mod tap;
mod taps;
#[cfg(test)]
pub(crate) mod tests;
mod transmit;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nacre_protocol::control::{MAX_TAPS, MIN_MTU};
use virtio_bindings::bindings::virtio_net as bits;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use vmm_sys_util::epoll::EventSet;

use self::control::Command;
use self::pace::Pace;
use self::pair::QueuePair;
use self::receive::Received;
use self::tap::Tap;
pub use self::tap::{TapError, open_tap};
use self::taps::{MAX_CHANGES, Taps};
use super::worker::{ActiveDevice, DataPath, Fault, Notify};
use super::{Device, DeviceError, Env, Spec, feature};
use crate::jail::calls::net::PROFILE;
use crate::log::LimitedLog;

/// The size of each queue for packets.
const QUEUE_SIZE: u16 = 256;
/// Most descriptors of a chain that are read, as many as the queue has: a driver must not make a longer chain
/// (virtio 1.2, 2.7.5.3.1). A longer one ends there.
const MAX_DESCRIPTORS: usize = QUEUE_SIZE as usize;
/// The size of the control queue, if there is one.
const CONTROL_QUEUE_SIZE: u16 = 16;
/// What is waited for on a tap: packets.
const TAP_EVENTS: EventSet = EventSet::IN.union(EventSet::EDGE_TRIGGERED);
/// Most packets of an earlier driver that are dropped when another one starts: more than a tap holds.
const MAX_STALE: usize = 4096;

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
    /// One per queue pair, at least one.
    taps: Vec<Arc<Tap>>,
    mac: [u8; 6],
    mtu: u16,
    /// How many changes of the taps the driver may cause.
    max_changes: u32,
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
        if !(1..=MAX_TAPS).contains(&taps.len()) {
            return Err(ConfigError::Taps(taps.len()));
        }
        let [first, ..] = mac;
        if first & 1 != 0 || mac == [0; 6] {
            return Err(ConfigError::Mac(mac));
        }
        if mtu < MIN_MTU {
            return Err(ConfigError::Mtu(mtu));
        }
        let taps = taps.into_iter().map(|tap| Tap::new(tap).map(Arc::new));
        Ok(Self {
            taps: taps.collect::<Result<_, _>>()?,
            mac,
            mtu,
            max_changes: MAX_CHANGES,
        })
    }

    /// A configuration whose taps are sockets with message boundaries.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn of_sockets(sockets: Vec<OwnedFd>) -> Self {
        Self {
            taps: sockets
                .into_iter()
                .map(|socket| Arc::new(Tap::from_socket(socket)))
                .collect(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            max_changes: u32::MAX,
        }
    }

    /// The configuration space (virtio 1.2, 5.1.4): the address, the status (the link is up), the number of
    /// queue pairs, the MTU.
    fn space(&self) -> Vec<u8> {
        let (status, pairs) = (1_u16.to_le_bytes(), self.pairs().to_le_bytes());
        [&self.mac[..], &status, &pairs, &self.mtu.to_le_bytes()].concat()
    }

    /// The number of queue pairs.
    fn pairs(&self) -> u16 {
        u16::try_from(self.taps.len()).unwrap_or(u16::MAX)
    }
}

/// Creates the device, with two queues per tap, and spawns its worker, which serves all of them.
///
/// # Errors
/// [`DeviceError`] if the worker can't be spawned.
pub fn spawn(config: Config, env: &Env) -> Result<Device, DeviceError> {
    let pairs = config.pairs();
    let mut queue_sizes = vec![QUEUE_SIZE; usize::from(pairs.saturating_mul(2))];
    let mut features = FEATURES.to_vec();
    if pairs > 1 {
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        features.extend([bits::VIRTIO_NET_F_CTRL_VQ, bits::VIRTIO_NET_F_MQ]);
    }
    let spec = Spec {
        name: "net",
        device_type: VIRTIO_ID_NET,
        queue_sizes,
        features: features
            .into_iter()
            .fold(0, |features, bit| features | feature(bit)),
        config: config.space(),
        config_writable: 0..0,
        profile: &PROFILE,
    };
    Device::spawn(spec, env, move || {
        Ok(NetDataPath {
            taps: Taps::new(config.taps, config.max_changes),
            mtu: config.mtu,
            pairs: Vec::new(),
            pace: Pace::default(),
            was_active: false,
            log: LimitedLog::new(),
        })
    })
}

struct NetDataPath {
    taps: Taps,
    mtu: u16,
    /// Those that the driver uses, from the first one on; none while the device is not active.
    pairs: Vec<QueuePair>,
    pace: Pace,
    /// A driver has used the device before, and may have left packets in the tap.
    was_active: bool,
    log: LimitedLog,
}

impl DataPath for NetDataPath {
    /// The driver uses the first queue pair until it asks for more (virtio 1.2, 5.1.6.5.6.1).
    fn start(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        self.taps
            .attach_first(1)
            .map_err(Fault::io("detach a queue of the tap"))?;
        self.taps
            .set_offload(offloads(active.features))
            .map_err(Fault::io("set the tap's offloads"))?;
        let tap = self.taps.attached().first();
        if let Some(tap) = tap
            && std::mem::replace(&mut self.was_active, true)
        {
            // They may be larger than what this driver accepts.
            (0..MAX_STALE)
                .take_while(|_| tap.discard().is_ok())
                .for_each(drop);
        }
        self.use_attached(active)
    }

    fn on_queue(&mut self, index: u16, active: &mut ActiveDevice) -> Result<(), Fault> {
        if Some(index) == self.control_queue(active.features) {
            return self.carry_out_commands(index, active);
        }
        let pair = self.pairs.get_mut(usize::from(index.wrapping_shr(1)));
        let Some(pair) = pair else { return Ok(()) };
        let received = pair.on_queue(index, &self.log, active)?;
        follow(&mut self.pace, pair)?;
        self.check_link(received, active);
        Ok(())
    }

    fn on_event(&mut self, token: u64, ready: EventSet, active: &mut ActiveDevice) -> Result<(), Fault> {
        let pair = usize::try_from(token)
            .ok()
            .and_then(|token| self.pairs.get_mut(token));
        let Some(pair) = pair else { return Ok(()) };
        let received = pair.on_tap(ready, &self.log, active)?;
        follow(&mut self.pace, pair)?;
        self.check_link(received, active);
        Ok(())
    }

    fn on_memory(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        self.pairs.iter_mut().for_each(|pair| pair.on_memory(active));
        Ok(())
    }

    fn stop(&mut self, active: &mut ActiveDevice) {
        self.pairs.drain(..).for_each(|pair| pair.stop(active));
    }
}

impl NetDataPath {
    /// The index of the control queue, if the driver uses it (virtio 1.2, 5.1.2).
    fn control_queue(&self, features: u64) -> Option<u16> {
        let has_control = features & feature(bits::VIRTIO_NET_F_CTRL_VQ) != 0 && self.taps.len() > 1;
        let pairs = u16::try_from(self.most_pairs(features)).unwrap_or(u16::MAX);
        has_control.then_some(pairs.saturating_mul(2))
    }

    /// How many pairs the driver may use.
    fn most_pairs(&self, features: u64) -> usize {
        if features & feature(bits::VIRTIO_NET_F_MQ) != 0 {
            self.taps.len()
        } else {
            1
        }
    }

    /// Carries out the driver's commands: it may use another number of queue pairs from then on.
    fn carry_out_commands(&mut self, queue: u16, active: &mut ActiveDevice) -> Result<(), Fault> {
        // Without the feature, the queues of a second pair would be the control queue.
        let most = self.most_pairs(active.features);
        let taps = &mut self.taps;
        active.serve(queue, Notify::Each, |memory, chain| {
            let command = Command::read(memory, chain);
            let wanted = command.pairs().map(usize::from);
            let wanted = wanted.filter(|wanted| (1..=most).contains(wanted));
            let done = wanted.is_some_and(|wanted| taps.attach_first(wanted).is_ok());
            command.answer(memory, done)
        })?;
        self.use_attached(active)
    }

    /// Uses the queue pairs of the attached taps, and no others.
    fn use_attached(&mut self, active: &mut ActiveDevice) -> Result<(), Fault> {
        let attached = self.taps.attached();
        while self.pairs.len() > attached.len()
            && let Some(pair) = self.pairs.pop()
        {
            pair.stop(active);
        }
        for (index, tap) in (0..).zip(attached).skip(self.pairs.len()) {
            self.pairs.push(QueuePair::start(index, tap, self.mtu, active)?);
        }
        Ok(())
    }

    /// Sets the link down if a tap has lost its network interface.
    fn check_link(&self, received: Received, active: &ActiveDevice) {
        if received == Received::Gone {
            self.log
                .write(|| "virtio net: the tap's network interface was removed; the link is down".to_owned());
            // Cannot fail: the field exists.
            let _ = active.config.update(STATUS, &[0, 0]);
        }
    }
}

/// Makes the worker's `pace` follow what has passed through `pair`.
fn follow(pace: &mut Pace, pair: &mut QueuePair) -> Result<(), Fault> {
    let mut passed = pair.take_passed().into_iter();
    passed
        .try_for_each(|passed| pace.follow(passed))
        .map_err(Fault::io("change how the worker is scheduled"))
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
