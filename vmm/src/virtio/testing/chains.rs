//! Descriptors for tests: valid, malformed and random.

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::{BUFFERS, MEMORY_SIZE};

/// VIRTQ_DESC_F_NEXT: the chain continues.
pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// VIRTQ_DESC_F_WRITE: a device-writable buffer.
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// VIRTQ_DESC_F_INDIRECT: the buffer is a table of descriptors.
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// The fields of a descriptor (virtio 1.2, 2.7.5): address, length, flags, next.
pub type Fields = (u64, u32, u16, u16);

/// A device-readable buffer.
pub fn readable(address: u64, length: u32) -> Fields {
    (address, length, 0, 0)
}

/// A device-writable buffer.
pub fn writable(address: u64, length: u32) -> Fields {
    (address, length, WRITE, 0)
}

/// Chains that violate the specification, each with a description. Descriptor 0 is the head.
pub fn malformed_chains() -> Vec<(&'static str, Vec<Fields>)> {
    let far = MEMORY_SIZE + 0x1000;
    vec![
        ("a loop of one descriptor", vec![(BUFFERS, 64, NEXT | WRITE, 0)]),
        (
            "a loop of two descriptors",
            vec![(BUFFERS, 64, NEXT | WRITE, 1), (BUFFERS, 64, NEXT | WRITE, 0)],
        ),
        ("next beyond the table", vec![(BUFFERS, 64, NEXT | WRITE, 0xffff)]),
        ("writable, outside of memory", vec![(far, 64, WRITE, 0)]),
        ("readable, outside of memory", vec![(far, 64, 0, 0)]),
        (
            "writable, across the end of memory",
            vec![(MEMORY_SIZE - 8, 64, WRITE, 0)],
        ),
        (
            "readable, across the end of memory",
            vec![(MEMORY_SIZE - 8, 64, 0, 0)],
        ),
        ("writable, the address wraps", vec![(u64::MAX - 8, 64, WRITE, 0)]),
        ("readable, the address wraps", vec![(u64::MAX - 8, 64, 0, 0)]),
        ("readable, zero length", vec![(BUFFERS, 0, 0, 0)]),
        ("writable, zero length", vec![(BUFFERS, 0, WRITE, 0)]),
        (
            "writable, 4 GiB less one byte",
            vec![(BUFFERS, u32::MAX, WRITE, 0)],
        ),
        (
            "more than 4 GiB in two buffers",
            vec![
                (BUFFERS, u32::MAX, NEXT | WRITE, 1),
                (BUFFERS, u32::MAX, WRITE, 0),
            ],
        ),
        (
            "readable after writable",
            vec![(BUFFERS, 64, NEXT | WRITE, 1), (BUFFERS + 64, 64, 0, 0)],
        ),
        ("readable, one byte", vec![(BUFFERS, 1, 0, 0)]),
        ("writable, one byte", vec![(BUFFERS, 1, WRITE, 0)]),
        (
            "an indirect table outside of memory",
            vec![(far, 64, INDIRECT, 0)],
        ),
        (
            "an indirect table of odd length",
            vec![(BUFFERS, 17, INDIRECT, 0)],
        ),
        (
            "an indirect table that contains itself",
            vec![(0x1000, 4096, INDIRECT, 0)],
        ),
        (
            "an indirect table with VIRTQ_DESC_F_NEXT",
            vec![(BUFFERS, 64, INDIRECT | NEXT, 1), (BUFFERS, 64, WRITE, 0)],
        ),
    ]
}

/// A deterministic pseudo-random number generator (xorshift64*). The seed must not be 0.
pub struct Prng(pub u64);

impl Prng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from 0 to `bound` - 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// As [`Prng::below`], for 16 bits.
    pub fn small(&mut self, bound: u16) -> u16 {
        self.below(bound.into()) as u16
    }

    /// A descriptor each of whose fields is plausible or absurd, at random.
    pub fn descriptor(&mut self) -> Fields {
        let address = match self.below(8) {
            0 => self.next(),
            1 => MEMORY_SIZE - self.below(64),
            2 => self.below(BUFFERS),
            _ => BUFFERS + self.below(MEMORY_SIZE - BUFFERS),
        };
        let length = match self.below(8) {
            0 => self.next() as u32,
            1 => 0,
            2 => 16 * self.below(8) as u32,
            _ => self.below(0x1_0000) as u32,
        };
        (address, length, self.below(8) as u16, self.below(20) as u16)
    }
}
