//! A queue pair with its tap: one receive queue and one transmit queue (virtio 1.2, 5.1.2). The data path has
//! as many as the driver uses.

use std::sync::Arc;

use virtio_bindings::bindings::virtio_net as bits;
use vmm_sys_util::epoll::EventSet;

use super::pace::Passed;
use super::receive::{Received, Receiver};
use super::tap::{HEADER_BYTES, Tap};
use super::transmit::{LARGEST, Transmitter};
use super::{TAP_EVENTS, feature};
use crate::log::LimitedLog;
use crate::virtio::worker::{ActiveDevice, Fault};

/// Bytes of an Ethernet header with a VLAN tag.
const ETHERNET_BYTES: u32 = 18;

/// A queue pair in use.
pub struct QueuePair {
    tap: Arc<Tap>,
    /// Of its receive queue; the transmit queue follows.
    queue: u16,
    /// Of the tap in the worker's epoll set.
    token: u64,
    receiver: Receiver,
    transmitter: Transmitter,
}

impl QueuePair {
    /// The pair with number `index`. Waits for packets of `tap` from now on.
    pub fn start(index: u16, tap: &Arc<Tap>, mtu: u16, active: &mut ActiveDevice) -> Result<Self, Fault> {
        let has = |bit| active.features & feature(bit) != 0;
        let large = has(bits::VIRTIO_NET_F_GUEST_TSO4) || has(bits::VIRTIO_NET_F_GUEST_TSO6);
        let frame = u32::from(mtu)
            .saturating_add(HEADER_BYTES)
            .saturating_add(ETHERNET_BYTES);
        let largest = if large { LARGEST } else { frame };
        let mergeable = has(bits::VIRTIO_NET_F_MRG_RXBUF);
        let queue = index.saturating_mul(2);
        let pair = Self {
            tap: Arc::clone(tap),
            queue,
            token: index.into(),
            receiver: Receiver::new(queue, mergeable, largest, active),
            transmitter: Transmitter::new(queue.saturating_add(1), active),
        };
        active
            .poller
            .add(&*pair.tap, pair.token, TAP_EVENTS)
            .map_err(Fault::io("watch the tap"))?;
        // A driver need not make all queues ready.
        if active.is_ready(queue) {
            active.disable_notification(queue)?;
        }
        Ok(pair)
    }

    /// Waits for packets no longer.
    pub fn stop(self, active: &ActiveDevice) {
        // Fails if `start` could not add it.
        let _ = active.poller.remove(&*self.tap);
    }

    /// The driver kicked `queue`, one of the two.
    pub fn on_queue(
        &mut self,
        queue: u16,
        log: &LimitedLog,
        active: &mut ActiveDevice,
    ) -> Result<Received, Fault> {
        if queue == self.queue {
            return self.receiver.receive(&self.tap, log, active);
        }
        self.transmitter.transmit(&self.tap, self.token, log, active)?;
        Ok(Received::Done)
    }

    /// The tap is `ready`.
    pub fn on_tap(
        &mut self,
        ready: EventSet,
        log: &LimitedLog,
        active: &mut ActiveDevice,
    ) -> Result<Received, Fault> {
        if ready.contains(EventSet::OUT) && self.transmitter.set_writable() {
            self.transmitter.transmit(&self.tap, self.token, log, active)?;
        }
        self.receiver.set_readable();
        if active.is_ready(self.queue) {
            self.receiver.receive(&self.tap, log, active)
        } else {
            Ok(Received::Done)
        }
    }

    /// The packets that have passed since the last call, of each direction.
    pub fn take_passed(&mut self) -> [Passed; 2] {
        [self.receiver.take_passed(), self.transmitter.take_passed()]
    }

    /// Guest memory has grown.
    pub fn on_memory(&mut self, active: &ActiveDevice) {
        self.receiver.set_memory(&active.memory);
        self.transmitter.set_memory(&active.memory);
    }
}
