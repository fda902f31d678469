//! Packets from the guest to a tap (virtio 1.2, 5.1.6.2). Used by the data path, on the worker's thread. A
//! tap that is full makes packets wait in the queue; it never makes the worker wait.

use std::io::ErrorKind;
use std::sync::Arc;

use vmm_sys_util::epoll::EventSet;

use super::pace::Passed;
use super::tap::{HEADER_BYTES, Tap};
use super::{MAX_DESCRIPTORS, TAP_EVENTS};
use crate::log::LimitedLog;
use crate::memory::Memory;
use crate::virtio::vectors::{MAX_VECTORS, Vectors};
use crate::virtio::worker::{ActiveDevice, Chain, Fault};

/// Longest packet with its header: what a tap may pass to the guest, too.
pub const LARGEST: u32 = 65_562;

/// The transmitting side of a queue pair.
pub struct Transmitter {
    queue: u16,
    /// The tap takes packets: it was not full, or has reported space since.
    writable: bool,
    vectors: Vectors,
    passed: Passed,
}

/// What happened to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// It is in the tap, or it could not be sent at all.
    Done,
    /// The tap is full.
    Full,
}

impl Transmitter {
    /// For `queue`.
    pub fn new(queue: u16, active: &ActiveDevice) -> Self {
        Self {
            queue,
            writable: true,
            vectors: Vectors::with_capacity(Arc::clone(&active.memory), MAX_VECTORS),
            passed: Passed::default(),
        }
    }

    /// Guest memory has grown.
    pub fn set_memory(&mut self, memory: &Arc<Memory>) {
        self.vectors.set_memory(memory);
    }

    /// The packets that have passed since the last call.
    pub fn take_passed(&mut self) -> Passed {
        std::mem::take(&mut self.passed)
    }

    /// The tap reported that it has space; true if packets wait for it.
    pub fn set_writable(&mut self) -> bool {
        !std::mem::replace(&mut self.writable, true)
    }

    /// Writes the packets of the queue to `tap` until there are no more, the tap is full, or it is somebody
    /// else's turn. The driver does not kick meanwhile.
    pub fn transmit(
        &mut self,
        tap: &Tap,
        token: u64,
        log: &LimitedLog,
        active: &mut ActiveDevice,
    ) -> Result<(), Fault> {
        if !self.writable {
            return Ok(());
        }
        let mut left = active.queue_size(self.queue);
        loop {
            active.disable_notification(self.queue)?;
            while left > 0
                && let Some(chain) = active.pop(self.queue)?
            {
                let head = chain.head_index();
                if self.send(chain, tap, log) == Sent::Full {
                    active.undo_pop(self.queue)?;
                    self.writable = false;
                    // Reports space that there is by now, too.
                    active
                        .poller
                        .change(tap, token, TAP_EVENTS | EventSet::OUT)
                        .map_err(Fault::io("watch a tap that is full"))?;
                    return active.notify(self.queue);
                }
                active.push(self.queue, head, 0)?;
                left = left.saturating_sub(1);
            }
            if left == 0 {
                active.requeue(self.queue)?;
                break;
            }
            if !active.enable_notification(self.queue)? {
                break;
            }
        }
        active.notify(self.queue)
    }

    /// Writes the packet in `chain` to `tap`. One that is malformed, or that the host refuses, is dropped.
    fn send(&mut self, chain: Chain, tap: &Tap, log: &LimitedLog) -> Sent {
        self.vectors.truncate(0);
        let mut length = 0_u32;
        let mut buffers = chain.take(MAX_DESCRIPTORS).filter(|buffer| buffer.len() > 0);
        let is_valid = buffers.all(|buffer| {
            length = length.saturating_add(buffer.len());
            !buffer.is_write_only() && length <= LARGEST && self.vectors.push(buffer.addr(), buffer.len())
        });
        if !is_valid || length <= HEADER_BYTES {
            log.write(|| "virtio net: dropping a packet in a malformed chain".to_owned());
            return Sent::Done;
        }
        loop {
            match tap.write(&self.vectors) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Sent::Full,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    log.write(|| format!("virtio net: dropping a packet that the tap refuses: {error}"));
                    return Sent::Done;
                }
                Ok(length) => {
                    self.passed.add(length);
                    return Sent::Done;
                }
            }
        }
    }
}
