//! A 16550 on eight ports: the guest's console. Called by vCPU threads; its output goes to [`Console`], its input
//! (by hand only) comes from the main thread through [`Input`].
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

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::console::Console;
use crate::bus::BusDevice;

/// The port's interrupt line.
#[derive(Debug)]
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

type Uart = Serial<Line, NoEvents, Console>;

/// The port as the bus sees it.
pub struct SerialPort(Arc<Mutex<Uart>>);

/// The port's receiving side.
#[derive(Clone)]
pub struct Input(Arc<Mutex<Uart>>);

/// A port that writes to `console` and raises `line`, with its receiving side.
#[must_use]
pub fn make(line: Line, console: Console) -> (SerialPort, Input) {
    let uart = Arc::new(Mutex::new(Serial::new(line, console)));
    (SerialPort(Arc::clone(&uart)), Input(uart))
}

impl Input {
    /// How many bytes the guest can take now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fifo_capacity()
    }

    /// Gives `bytes` to the guest; those for which there is no room are lost, as on a wire.
    pub fn type_in(&self, bytes: &[u8]) {
        let mut uart = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Without room or with its interrupt broken there is nobody to tell: the bytes are lost as documented.
        let _lost = uart.enqueue_raw_bytes(bytes).is_err();
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let Ok(offset) = u8::try_from(offset) else {
            return data.fill(0xff);
        };
        let mut uart = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in data {
            *byte = uart.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(offset) = u8::try_from(offset) else { return };
        let mut uart = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in data {
            // Console never fails; an interrupt that can't be raised costs the guest its input, not its output.
            let _lost = uart.write(offset, *byte).is_err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConsoleTo;

    #[test]
    fn what_the_guest_writes_is_on_the_console_and_odd_offsets_do_nothing() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(nacre_protocol::console::RING_BYTES).unwrap();
        let console = Console::new(Some(file.try_clone().unwrap()), ConsoleTo::Ring);
        let (mut port, input) = make(Line(EventFd::new(libc::EFD_NONBLOCK).unwrap()), console);
        port.write(0, b"h");
        port.write(0, b"i\n");
        port.write(999, b"x");
        assert_eq!(nacre_protocol::console::last_lines(&file, 9).unwrap(), ["hi"]);
        input.type_in(b"k");
        let mut byte = [0];
        port.read(0, &mut byte);
        assert_eq!(byte, *b"k");
        input.type_in(&[0; 1000]);
        assert_eq!(input.room(), 0);
    }
}
