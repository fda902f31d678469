//! pvpanic on one port: how the guest's kernel says that it panicked. Called by vCPU threads.
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

/// The kernel panicked and will do nothing more.
const PANICKED: u8 = 1 << 0;
/// The kernel panicked and goes on in a crash kernel; there is none here.
const CRASH_LOADED: u8 = 1 << 1;

/// The port.
#[derive(Debug)]
pub struct PanicPort {
    ending: Ending,
}

impl PanicPort {
    /// A port that ends the VM by `ending`.
    #[must_use]
    pub fn new(ending: Ending) -> Self {
        Self { ending }
    }
}

impl BusDevice for PanicPort {
    /// The events that it understands.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED | CRASH_LOADED);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        // The panic's message and its stack are on the console already: the kernel calls pvpanic after them.
        if data.iter().any(|byte| byte & (PANICKED | CRASH_LOADED) != 0) {
            self.ending.end(Outcome::Panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_the_vm_and_nothing_else_does() {
        let ending = Ending::new().unwrap();
        let mut port = PanicPort::new(ending.clone());
        port.write(0, &[0]);
        port.write(0, &[]);
        assert_eq!(ending.outcome(), None);
        let mut events = [0];
        port.read(0, &mut events);
        assert_eq!(events, [3]);
        port.write(0, &[PANICKED]);
        assert_eq!(ending.outcome(), Some(Outcome::Panic));
    }
}
