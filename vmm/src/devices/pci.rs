//! The PCI configuration ports of a machine without PCI devices. The guest kernel has PCI support because
//! ACPICA needs it. If these ports did not respond, it would print a message about that, with an exit for
//! each character. Called by vCPU threads.

use crate::bus::BusDevice;

/// Number of ports: address and data, 4 each.
pub const PORTS: u16 = 8;

/// The address register can be read back; data reads as all ones, as for an empty slot.
#[derive(Debug, Default)]
pub struct EmptyPci {
    address: [u8; 4],
}

impl BusDevice for EmptyPci {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            (0, Ok(word)) => *word = self.address,
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, Ok(word)) = (offset, <[u8; 4]>::try_from(data)) {
            self.address = word;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_reads_back_and_every_slot_is_empty() {
        let mut pci = EmptyPci::default();
        pci.write(3, &[1]);
        pci.write(0, &0x8000_0000_u32.to_le_bytes());
        let mut word = [0; 4];
        pci.read(0, &mut word);
        assert_eq!(u32::from_le_bytes(word), 0x8000_0000);
        pci.read(4, &mut word);
        assert_eq!(word, [0xff; 4]);
        let mut byte = [0];
        pci.read(0, &mut byte);
        assert_eq!(byte, [0xff]);
    }
}
