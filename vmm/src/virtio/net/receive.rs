//! Packets from a tap to the guest (virtio 1.2, 5.1.6.3 and 5.1.6.4). Used by the data path, on the worker's
//! thread.
//!
//! The length of a packet is known only once it is read, so buffers for the largest one must be at hand. They
//! are taken from the queue ahead and remembered ([`Receiver::chains`]): a packet uses the first ones, and only
//! as many new ones are parsed. Between two calls the pops are undone, so that the state of the queue says
//! everything; the memory of the parsed chains stays valid, since the driver must not change an available
//! chain. If it does, it gets the packet in the buffers that were checked, which are its own memory.

use std::io::ErrorKind;
use std::sync::Arc;

use vm_memory::{Address as _, Bytes as _, GuestAddress};

use super::MAX_DESCRIPTORS;
use super::pace::Passed;
use super::tap::{HEADER_BYTES, Tap};
use crate::log::LimitedLog;
use crate::memory::Memory;
use crate::virtio::vectors::{MAX_VECTORS, Vectors};
use crate::virtio::worker::{ActiveDevice, Chain, Fault};

/// Packets after which an interrupt is raised, if the driver wants one.
const PACKETS_PER_INTERRUPT: u32 = 32;
/// Packets after which the worker handles other events first.
const PACKETS_PER_TURN: u32 = 256;
/// Offset of num_buffers in the header.
const NUM_BUFFERS: u64 = 10;

/// A chain of the queue that was parsed ahead.
#[derive(Debug, Clone, Copy)]
struct Parsed {
    head: u16,
    /// How many of [`Receiver::vectors`] are its buffers.
    vectors: usize,
    /// Device-writable bytes; 0 if the chain is malformed, which is then used without a packet.
    bytes: u32,
    /// Where the two bytes of num_buffers go, if a packet begins in it.
    num_buffers: [GuestAddress; 2],
}

/// The receiving side of a queue pair.
pub struct Receiver {
    queue: u16,
    /// Whether a packet may take several chains (VIRTIO_NET_F_MRG_RXBUF).
    mergeable: bool,
    /// Bytes that the largest packet takes.
    largest: u32,
    /// The tap may have a packet: it has reported one, and has not been read to the end since.
    readable: bool,
    /// What is available in the queue, from its first chain on, as far as it was parsed.
    chains: Vec<Parsed>,
    vectors: Vectors,
    /// Sum over `chains`.
    bytes: u32,
    /// The chains of the packet at hand. Keeps its allocation.
    used: Vec<(u16, u32)>,
    passed: Passed,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// The tap has no more packets, or the queue has no more buffers.
    Done,
    /// The tap has no network interface any more.
    Gone,
}

impl Receiver {
    /// For `queue`; `largest` is the length of the largest packet with its header.
    pub fn new(queue: u16, mergeable: bool, largest: u32, active: &ActiveDevice) -> Self {
        let size = usize::from(active.queue_size(queue));
        Self {
            queue,
            mergeable,
            largest,
            readable: false,
            chains: Vec::with_capacity(size),
            vectors: Vectors::with_capacity(Arc::clone(&active.memory), MAX_VECTORS),
            bytes: 0,
            used: Vec::with_capacity(size),
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

    /// The tap reported that it has packets.
    pub fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Reads packets until the tap has no more, the queue has no more buffers, or it is somebody else's turn.
    /// The driver kicks for new buffers only if they ran out.
    pub fn receive(
        &mut self,
        tap: &Tap,
        log: &LimitedLog,
        active: &mut ActiveDevice,
    ) -> Result<Received, Fault> {
        if !self.readable {
            return Ok(Received::Done);
        }
        active.redo_pops(self.queue, self.popped())?;
        let result = self.receive_packets(tap, log, active);
        active.undo_pops(self.queue, self.popped())?;
        let result = result?;
        active.notify(self.queue)?;
        Ok(result)
    }

    fn receive_packets(
        &mut self,
        tap: &Tap,
        log: &LimitedLog,
        active: &mut ActiveDevice,
    ) -> Result<Received, Fault> {
        let mut pushed = 0_u32;
        while self.readable && self.parse_ahead(active)? {
            if pushed >= PACKETS_PER_TURN {
                active.requeue(self.queue)?;
                break;
            }
            if self.chains.first().is_some_and(|chain| chain.bytes == 0) {
                self.use_chains(1, 0, active)?;
            } else {
                match self.read(tap) {
                    // A tap's packet has a header.
                    Ok(length) if length < HEADER_BYTES => {
                        self.readable = false;
                        return Ok(Received::Gone);
                    }
                    Ok(length) => self.deliver(length, active)?,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => {
                        self.readable = false;
                        return Ok(failed_read(&error, log));
                    }
                }
            }
            pushed = pushed.wrapping_add(1);
            if pushed.is_multiple_of(PACKETS_PER_INTERRUPT) {
                active.notify(self.queue)?;
            }
        }
        Ok(Received::Done)
    }

    /// Takes chains from the queue until the largest packet fits into them; false if there are too few, and
    /// the driver will kick. A queue that is too small for the largest packet must do for the others.
    fn parse_ahead(&mut self, active: &mut ActiveDevice) -> Result<bool, Fault> {
        let size = usize::from(active.queue_size(self.queue));
        while !self.has_room() && self.chains.len() < size {
            match active.pop(self.queue)? {
                Some(chain) => self.parse(chain),
                None if active.enable_notification(self.queue)? => {}
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn has_room(&self) -> bool {
        let enough_for_any = self.bytes >= self.largest || !self.mergeable && !self.chains.is_empty();
        enough_for_any || self.vectors.len().saturating_add(MAX_DESCRIPTORS) > MAX_VECTORS
    }

    /// Appends `chain`. Reads each descriptor once.
    fn parse(&mut self, chain: Chain) {
        let start = self.vectors.len();
        let mut parsed = Parsed {
            head: chain.head_index(),
            vectors: 0,
            bytes: 0,
            num_buffers: [GuestAddress(0); 2],
        };
        let mut is_valid = true;
        for buffer in chain.take(MAX_DESCRIPTORS).filter(|buffer| buffer.len() > 0) {
            is_valid &= buffer.is_write_only() && self.vectors.push(buffer.addr(), buffer.len());
            for (at, index) in parsed.num_buffers.iter_mut().zip(NUM_BUFFERS..) {
                let offset = index.checked_sub(u64::from(parsed.bytes));
                let offset = offset.filter(|offset| *offset < u64::from(buffer.len()));
                if let Some(address) = offset.and_then(|offset| buffer.addr().checked_add(offset)) {
                    *at = address;
                }
            }
            parsed.bytes = parsed.bytes.saturating_add(buffer.len());
        }
        if !is_valid || parsed.bytes < HEADER_BYTES {
            self.vectors.truncate(start);
            parsed.bytes = 0;
        }
        parsed.vectors = self.vectors.len().saturating_sub(start);
        self.bytes = self.bytes.saturating_add(parsed.bytes);
        self.chains.push(parsed);
    }

    /// Reads a packet into the chains that it may use.
    fn read(&self, tap: &Tap) -> std::io::Result<u32> {
        match self.chains.first() {
            Some(chain) if !self.mergeable => tap.read_first(&self.vectors, chain.vectors),
            _ => tap.read(&self.vectors),
        }
    }

    /// Gives a packet of `length` bytes, header included, to the driver (virtio 1.2, 5.1.6.4).
    fn deliver(&mut self, length: u32, active: &mut ActiveDevice) -> Result<(), Fault> {
        self.passed.add(length);
        let (mut count, mut room) = (0_u16, 0_u32);
        for chain in &self.chains {
            count = count.wrapping_add(1);
            room = room.saturating_add(chain.bytes);
            if room >= length {
                break;
            }
        }
        if let Some(first) = self.chains.first() {
            set_num_buffers(&active.memory, first, count);
        }
        self.use_chains(count, length, active)
    }

    /// Pushes the first `count` chains with `length` bytes in all to the used ring, and forgets them.
    fn use_chains(&mut self, count: u16, length: u32, active: &mut ActiveDevice) -> Result<(), Fault> {
        self.used.clear();
        let (mut left, mut vectors, mut bytes) = (length, 0_usize, 0_u32);
        for chain in self.chains.drain(..usize::from(count).min(self.chains.len())) {
            let part = left.min(chain.bytes);
            left = left.saturating_sub(part);
            vectors = vectors.saturating_add(chain.vectors);
            bytes = bytes.saturating_add(chain.bytes);
            self.used.push((chain.head, part));
        }
        self.vectors.remove_first(vectors);
        self.bytes = self.bytes.saturating_sub(bytes);
        active.push_all(self.queue, &self.used)
    }

    /// How many chains are popped from the queue while packets are read.
    fn popped(&self) -> u16 {
        u16::try_from(self.chains.len()).unwrap_or(u16::MAX)
    }
}

/// What the failure of a read means. Only a tap that has lost its interface never works again; after another
/// error, the tap is read when it reports the next packet.
fn failed_read(error: &std::io::Error, log: &LimitedLog) -> Received {
    if error.raw_os_error() == Some(libc::EBADFD) {
        return Received::Gone;
    }
    if error.kind() != ErrorKind::WouldBlock {
        log.write(|| format!("virtio net: dropping a packet that the tap can't deliver: {error}"));
    }
    Received::Done
}

/// Sets num_buffers of the packet that begins in `chain`; the tap leaves these bytes alone.
fn set_num_buffers(memory: &Memory, chain: &Parsed, count: u16) {
    for (byte, address) in count.to_le_bytes().into_iter().zip(chain.num_buffers) {
        // Cannot fail: the address is in a buffer that was checked.
        let _ = memory.write_obj(byte, address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_tap_without_an_interface_is_gone() {
        let log = LimitedLog::new();
        for (errno, expected) in [
            (libc::EBADFD, Received::Gone),
            (libc::EAGAIN, Received::Done),
            (libc::EFAULT, Received::Done),
            (libc::EINVAL, Received::Done),
        ] {
            let error = std::io::Error::from_raw_os_error(errno);
            assert_eq!(failed_read(&error, &log), expected, "{error}");
        }
    }
}
