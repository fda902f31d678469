//! Descriptors, right, wrong and random.

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::{BUFFERS, MEMORY_SIZE};

/// Another descriptor follows.
pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// For the device to write.
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// A table of descriptors.
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// A descriptor: address, length, flags, next.
pub type Raw = (u64, u32, u16, u16);

/// A buffer that the device may read.
pub fn readable(address: u64, length: u32) -> Raw {
    (address, length, 0, 0)
}

/// A buffer that the device may write.
pub fn writable(address: u64, length: u32) -> Raw {
    (address, length, WRITE, 0)
}

/// Chains that no driver may make, each with a name; they start at descriptor 0.
pub fn malformed_chains() -> Vec<(&'static str, Vec<Raw>)> {
    let far = MEMORY_SIZE + 0x1000;
    vec![
        ("a loop of one", vec![(BUFFERS, 64, NEXT | WRITE, 0)]),
        (
            "a loop of two",
            vec![(BUFFERS, 64, NEXT | WRITE, 1), (BUFFERS, 64, NEXT | WRITE, 0)],
        ),
        ("next beyond the table", vec![(BUFFERS, 64, NEXT | WRITE, 0xffff)]),
        ("outside of memory, writable", vec![(far, 64, WRITE, 0)]),
        ("outside of memory, readable", vec![(far, 64, 0, 0)]),
        ("across the end of memory", vec![(MEMORY_SIZE - 8, 64, WRITE, 0)]),
        (
            "readable across the end of memory",
            vec![(MEMORY_SIZE - 8, 64, 0, 0)],
        ),
        ("an address that wraps", vec![(u64::MAX - 8, 64, WRITE, 0)]),
        ("a readable address that wraps", vec![(u64::MAX - 8, 64, 0, 0)]),
        ("zero length", vec![(BUFFERS, 0, 0, 0)]),
        ("zero length, writable", vec![(BUFFERS, 0, WRITE, 0)]),
        ("4 GiB less one", vec![(BUFFERS, u32::MAX, WRITE, 0)]),
        (
            "over 4 GiB together",
            vec![
                (BUFFERS, u32::MAX, NEXT | WRITE, 1),
                (BUFFERS, u32::MAX, WRITE, 0),
            ],
        ),
        (
            "readable after writable",
            vec![(BUFFERS, 64, NEXT | WRITE, 1), (BUFFERS + 64, 64, 0, 0)],
        ),
        ("only readable, one byte", vec![(BUFFERS, 1, 0, 0)]),
        ("only writable, one byte", vec![(BUFFERS, 1, WRITE, 0)]),
        (
            "an indirect table outside of memory",
            vec![(far, 64, INDIRECT, 0)],
        ),
        (
            "an indirect table of odd length",
            vec![(BUFFERS, 17, INDIRECT, 0)],
        ),
        ("an indirect table in itself", vec![(0x1000, 4096, INDIRECT, 0)]),
        (
            "an indirect table with a next",
            vec![(BUFFERS, 64, INDIRECT | NEXT, 1), (BUFFERS, 64, WRITE, 0)],
        ),
    ]
}

/// A small deterministic generator for randomized tests (xorshift64*).
pub struct Prng(pub u64);

impl Prng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A number below `bound`.
    pub fn small(&mut self, bound: u16) -> u16 {
        self.below(bound.into()) as u16
    }

    /// A descriptor of which every part is plausible or absurd.
    pub fn descriptor(&mut self) -> Raw {
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
