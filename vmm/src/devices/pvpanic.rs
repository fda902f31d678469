//! pvpanic: an I/O port to which the guest's kernel writes when it panics. Called by vCPU threads.

use nacre_protocol::control::Outcome;

use crate::bus::BusDevice;
use crate::vm_exit::VmExit;

/// Event: the kernel panicked and halts.
const PANICKED: u8 = 1 << 0;
/// Event: the kernel panicked and starts a crash kernel; Nacre's guests have none.
const CRASH_LOADED: u8 = 1 << 1;

/// The device.
#[derive(Debug)]
pub struct PvPanic {
    vm_exit: VmExit,
}

impl PvPanic {
    /// A device that sets `vm_exit` to a panic.
    #[must_use]
    pub fn new(vm_exit: VmExit) -> Self {
        Self { vm_exit }
    }
}

impl BusDevice for PvPanic {
    /// Returns the supported events.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED | CRASH_LOADED);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        // The kernel has printed the panic's message and stack to the console before.
        if data.iter().any(|byte| byte & (PANICKED | CRASH_LOADED) != 0) {
            self.vm_exit.set(Outcome::Panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_panic_event_ends_the_vm() {
        let vm_exit = VmExit::new().unwrap();
        let mut port = PvPanic::new(vm_exit.clone());
        port.write(0, &[0]);
        port.write(0, &[]);
        assert_eq!(vm_exit.outcome(), None);
        let mut events = [0];
        port.read(0, &mut events);
        assert_eq!(events, [3]);
        port.write(0, &[PANICKED]);
        assert_eq!(vm_exit.outcome(), Some(Outcome::Panic));
    }
}
