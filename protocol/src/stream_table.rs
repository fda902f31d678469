//! The stream table: a memfd with the addresses of the streams that the agent is expected to open. The engine
//! writes it; the VMM looks up each connection that the guest opens and refuses one that is not expected. So
//! the connections that a container's process opens cost CPU time in the pod's cgroup, and none outside of
//! it.
//!
//! The engine adds an address before the agent learns it, so the VMM needs no message to know it in time.
//!
//! Layout: 128 sets of 32 addresses, each 8 bytes in little-endian order ([`StreamAddress::to_bits`]), 0
//! where none is. The lowest bits of an address, which is random, choose its set.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::vsock::StreamAddress;

const SETS: u64 = 128;
const SET_SLOTS: usize = 32;
const SLOT_BYTES: usize = 8;
const SET_BYTES: usize = SET_SLOTS * SLOT_BYTES;
/// Size of the memfd, bytes.
pub const TABLE_BYTES: u64 = SETS * SET_BYTES as u64;

/// The table. The engine and the VMM have a descriptor of the same file.
#[derive(Debug)]
pub struct StreamTable(File);

impl StreamTable {
    /// The table in `file`, which is [`TABLE_BYTES`] long; all zeros if it is new.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self(file)
    }

    /// The file, to pass it on.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }

    /// Adds `address`; false if there is no room for it. There is room for about 2,000 addresses.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn insert(&self, address: StreamAddress) -> io::Result<bool> {
        self.replace(0, address, address.to_bits())
    }

    /// Removes `address`, if it is there.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn remove(&self, address: StreamAddress) -> io::Result<()> {
        self.replace(address.to_bits(), address, 0).map(drop)
    }

    /// Whether `address` is expected.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn contains(&self, address: StreamAddress) -> io::Result<bool> {
        let bits = address.to_bits();
        // The address of port 0 on both sides would be found in each free slot.
        Ok(StreamAddress::from_bits(bits).is_some() && self.find(bits, address)?.is_some())
    }

    /// Replaces the first slot with `old` in the set of `address` by `new`; false if no slot has it.
    fn replace(&self, old: u64, address: StreamAddress, new: u64) -> io::Result<bool> {
        let Some(at) = self.find(old, address)? else {
            return Ok(false);
        };
        self.0.write_all_at(&new.to_le_bytes(), at)?;
        Ok(true)
    }

    /// The offset of the first slot with `bits` in the set of `address`.
    fn find(&self, bits: u64, address: StreamAddress) -> io::Result<Option<u64>> {
        let start = address.to_bits() % SETS * SET_BYTES as u64;
        let mut set = [0; SET_BYTES];
        self.0.read_exact_at(&mut set, start)?;
        let mut slots = set.chunks_exact(SLOT_BYTES);
        let index = slots.position(|slot| slot == bits.to_le_bytes());
        Ok(index.map(|index| start + (index * SLOT_BYTES) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The engine's table and the VMM's.
    fn tables() -> (StreamTable, StreamTable) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(TABLE_BYTES).unwrap();
        let vmm = StreamTable::new(file.try_clone().unwrap());
        (StreamTable::new(file), vmm)
    }

    fn address(host_port: u32, guest_port: u32) -> StreamAddress {
        StreamAddress {
            host_port,
            guest_port,
        }
    }

    #[test]
    fn an_address_is_expected_from_its_insertion_to_its_removal() {
        let (engine, vmm) = tables();
        let (a, b) = (address(0x1_0000, 0x2_0000), address(0x1_0001, 0x2_0000));
        assert!(engine.insert(a).unwrap() && engine.insert(b).unwrap());
        for other in [
            address(0x2_0000, 0x1_0000),
            address(0x1_0002, 0x2_0000),
            address(0, 0),
            address(0, 0x2_0000),
        ] {
            assert!(!vmm.contains(other).unwrap(), "{other:?}");
        }
        engine.remove(a).unwrap();
        engine.remove(a).unwrap();
        assert_eq!(
            (vmm.contains(a).unwrap(), vmm.contains(b).unwrap()),
            (false, true)
        );
    }

    #[test]
    fn a_set_that_is_full_refuses_until_an_address_is_removed() {
        let (engine, vmm) = tables();
        let same_set = |n: u32| address(0x1_0000 + n, 0x2_0000);
        for n in 0..32 {
            assert!(engine.insert(same_set(n)).unwrap());
        }
        assert!(!engine.insert(same_set(32)).unwrap());
        assert!(!vmm.contains(same_set(32)).unwrap());
        engine.remove(same_set(7)).unwrap();
        assert!(engine.insert(same_set(32)).unwrap());
        assert!((0..=32).all(|n| vmm.contains(same_set(n)).unwrap() == (n != 7)));
    }

    #[test]
    fn random_addresses_fill_the_table_evenly() {
        let (engine, vmm) = tables();
        let (mut state, mut inserted) = (1_u64, Vec::new());
        while inserted.len() < 2000 {
            // A linear congruential generator (Knuth, MMIX); its upper bits are the better ones.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let Some(address) = StreamAddress::from_bits(state.rotate_left(32)) else {
                continue;
            };
            assert!(engine.insert(address).unwrap(), "full at {}", inserted.len());
            inserted.push(address);
        }
        assert!(inserted.iter().all(|address| vmm.contains(*address).unwrap()));
    }
}
