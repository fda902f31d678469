//! ACPI sleep and reset registers of a hardware-reduced machine (ACPI 6.5, 4.8.3.7), by which the guest
//! powers off or resets. Called by vCPU threads; a reset ends the VM, too, it never restarts it.

use nacre_protocol::control::Outcome;

use crate::bus::BusDevice;
use crate::vm_exit::VmExit;

/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u16 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u16 = 1;
/// Offset of the reset register.
pub const RESET: u16 = 2;
/// Number of ports.
pub const PORTS: u16 = 3;
/// The value that the guest writes to the reset register.
pub const RESET_VALUE: u8 = 0x42;
/// SLP_TYP of the state S5 (off), as in the DSDT's \_S5 package.
pub const SLEEP_TYPE_S5: u8 = 5;

/// The three registers.
#[derive(Debug)]
pub struct PowerRegisters {
    vm_exit: VmExit,
}

impl PowerRegisters {
    /// Registers that set `vm_exit` to power-off or reset.
    #[must_use]
    pub fn new(vm_exit: VmExit) -> Self {
        Self { vm_exit }
    }
}

/// The meaning of a write.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    PowerOff,
    Reset,
}

fn parse(offset: u64, data: &[u8]) -> Option<Request> {
    const SLEEP_ENABLE: u8 = 1 << 5;
    let &[value] = data else { return None };
    match u16::try_from(offset).ok()? {
        SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && (value >> 2) & 7 == SLEEP_TYPE_S5 => {
            Some(Request::PowerOff)
        }
        RESET if value == RESET_VALUE => Some(Request::Reset),
        _ => None,
    }
}

impl BusDevice for PowerRegisters {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match parse(offset, data) {
            Some(Request::PowerOff) => self.vm_exit.set(Outcome::PowerOff),
            Some(Request::Reset) => {
                self.vm_exit.set(Outcome::Reset {
                    cause: "ACPI reset register".to_owned(),
                });
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(offset: u16, data: &[u8]) -> Option<Outcome> {
        let vm_exit = VmExit::new().unwrap();
        PowerRegisters::new(vm_exit.clone()).write(u64::from(offset), data);
        vm_exit.outcome()
    }

    #[test]
    fn power_off_and_reset_are_distinguished() {
        let off = SLEEP_TYPE_S5 << 2 | 1 << 5;
        assert_eq!(outcome(SLEEP_CONTROL, &[off]), Some(Outcome::PowerOff));
        assert!(matches!(
            outcome(RESET, &[RESET_VALUE]),
            Some(Outcome::Reset { .. })
        ));
    }

    #[test]
    fn other_writes_have_no_effect() {
        for (offset, data) in [
            (SLEEP_CONTROL, &[SLEEP_TYPE_S5 << 2] as &[u8]),
            (SLEEP_CONTROL, &[3 << 2 | 1 << 5]),
            (SLEEP_STATUS, &[0xff]),
            (RESET, &[0]),
            (RESET, &[RESET_VALUE, 0]),
            (RESET, &[]),
            (77, &[RESET_VALUE]),
        ] {
            assert_eq!(outcome(offset, data), None, "{offset} {data:?}");
        }
    }
}
