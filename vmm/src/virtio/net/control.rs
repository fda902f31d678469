//! The control queue (virtio 1.2, 5.1.6.5), which devices with several queue pairs have. Its only command sets
//! how many of them the driver uses. Parses a command, and has no effect itself.

use vm_memory::{Bytes as _, GuestAddress};

use crate::memory::Memory;
use crate::virtio::worker::Chain;

/// Most descriptors of a command that are read.
const MAX_DESCRIPTORS: usize = 16;
/// Class and number of VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const SET_PAIRS: [u8; 2] = [4, 0];
/// VIRTIO_NET_OK and VIRTIO_NET_ERR.
const OK: u8 = 0;
const ERROR: u8 = 1;

/// A command, with the place of its answer.
pub struct Command {
    bytes: [u8; 4],
    /// How many of them there were.
    length: usize,
    answer: Option<GuestAddress>,
}

impl Command {
    /// Reads the command in `chain`.
    pub fn read(memory: &Memory, chain: Chain) -> Self {
        let mut command = Self {
            bytes: [0; 4],
            length: 0,
            answer: None,
        };
        for buffer in chain.take(MAX_DESCRIPTORS).filter(|buffer| buffer.len() > 0) {
            if buffer.is_write_only() {
                command.answer = command.answer.or(Some(buffer.addr()));
                continue;
            }
            let room = command.bytes.get_mut(command.length..).unwrap_or_default();
            let count = usize::try_from(buffer.len())
                .unwrap_or(usize::MAX)
                .min(room.len());
            let part = room.get_mut(..count).unwrap_or_default();
            if memory.read_slice(part, buffer.addr()).is_ok() {
                command.length = command.length.saturating_add(count);
            }
        }
        command
    }

    /// How many queue pairs the driver wants to use; None if this is no such command.
    pub fn pairs(&self) -> Option<u16> {
        let [class, number, low, high] = self.bytes;
        (self.length == self.bytes.len() && [class, number] == SET_PAIRS)
            .then_some(u16::from_le_bytes([low, high]))
    }

    /// Writes the answer; returns its length.
    pub fn answer(&self, memory: &Memory, is_done: bool) -> u32 {
        let answer = if is_done { OK } else { ERROR };
        let written = self.answer.is_some_and(|at| memory.write_obj(answer, at).is_ok());
        u32::from(written)
    }
}
