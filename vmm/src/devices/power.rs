//! ACPI sleep and reset registers of a hardware-reduced machine (ACPI 6.5, 4.8.3.7): how the guest says that it is
//! done. Called by vCPU threads; ends the VM, never anything else.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use nacre_protocol::control::Outcome;

use crate::bus::BusDevice;
use crate::machine::ending::Ending;

/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u16 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u16 = 1;
/// Offset of the reset register.
pub const RESET: u16 = 2;
/// Number of ports.
pub const PORTS: u16 = 3;
/// What the reset register takes.
pub const RESET_VALUE: u8 = 0x42;
/// SLP_TYP of the state "off", which \_S5 names.
pub const SLEEP_OFF: u8 = 5;

/// The three registers.
#[derive(Debug)]
pub struct Power {
    ending: Ending,
}

impl Power {
    /// Registers that end the VM by `ending`.
    #[must_use]
    pub fn new(ending: Ending) -> Self {
        Self { ending }
    }
}

/// What a write asks for.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Off,
    Reset,
}

fn parse(offset: u64, data: &[u8]) -> Option<Request> {
    const SLEEP_ENABLE: u8 = 1 << 5;
    let &[value] = data else { return None };
    match u16::try_from(offset).ok()? {
        SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && (value >> 2) & 7 == SLEEP_OFF => Some(Request::Off),
        RESET if value == RESET_VALUE => Some(Request::Reset),
        _ => None,
    }
}

impl BusDevice for Power {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match parse(offset, data) {
            Some(Request::Off) => self.ending.end(Outcome::PowerOff),
            Some(Request::Reset) => {
                self.ending.end(Outcome::Reset {
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
        let ending = Ending::new().unwrap();
        Power::new(ending.clone()).write(u64::from(offset), data);
        ending.outcome()
    }

    #[test]
    fn off_and_reset_are_told_apart() {
        let off = SLEEP_OFF << 2 | 1 << 5;
        assert_eq!(outcome(SLEEP_CONTROL, &[off]), Some(Outcome::PowerOff));
        assert!(matches!(
            outcome(RESET, &[RESET_VALUE]),
            Some(Outcome::Reset { .. })
        ));
    }

    #[test]
    fn anything_else_does_nothing() {
        for (offset, data) in [
            (SLEEP_CONTROL, &[SLEEP_OFF << 2] as &[u8]),
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
