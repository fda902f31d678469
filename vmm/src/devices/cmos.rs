//! The ports of a PC's CMOS memory, of which this machine has none. Before Linux starts each secondary CPU it
//! writes there where that CPU would continue after a reset, and clears it afterwards, whether ACPI reports a
//! CMOS or not. The writes have no effect; without this device each of them would be logged.

use crate::bus::BusDevice;

/// Index and data.
pub const PORTS: u16 = 2;

/// CMOS memory that is not there: reads as all ones, ignores writes.
#[derive(Debug)]
pub struct NoCmos;

impl BusDevice for NoCmos {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}
