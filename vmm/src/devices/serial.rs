//! The guest's serial port, a 16550. Called by vCPU threads. Its output goes to [`Console`]; its input comes
//! from the main thread through [`SerialInput`], in standalone mode only.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use super::console::Console;
use super::io_apic::Pin;
use crate::bus::BusDevice;

/// Number of I/O ports.
pub const PORTS: u16 = 8;

/// The port's interrupt.
pub struct SerialInterrupt(pub Pin);

impl Trigger for SerialInterrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.raise()
    }
}

type Uart = Serial<SerialInterrupt, NoEvents, Console>;

/// The registers, for the bus.
pub struct SerialPort(Arc<Mutex<Uart>>);

/// The port's receiving side.
#[derive(Clone)]
pub struct SerialInput(Arc<Mutex<Uart>>);

/// Creates a port that writes to `console`, and its receiving side.
#[must_use]
pub fn create(interrupt: SerialInterrupt, console: Console) -> (SerialPort, SerialInput) {
    let uart = Arc::new(Mutex::new(Serial::new(interrupt, console)));
    (SerialPort(Arc::clone(&uart)), SerialInput(uart))
}

impl SerialInput {
    /// How many bytes fit into the receive FIFO.
    #[must_use]
    pub fn free_space(&self) -> usize {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fifo_capacity()
    }

    /// Puts `bytes` into the receive FIFO. Those that do not fit are lost, as with a real serial port.
    pub fn enqueue(&self, bytes: &[u8]) {
        let mut uart = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Fails if the FIFO is full or the interrupt can't be raised: the bytes are lost, as documented.
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
            // Console never fails. If the interrupt can't be raised, the output is nevertheless written.
            let _lost = uart.write(offset, *byte).is_err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConsoleOutput;

    #[test]
    fn output_reaches_the_console_and_input_the_guest() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(nacre_protocol::console::RING_BYTES).unwrap();
        let console = Console::new(Some(file.try_clone().unwrap()), ConsoleOutput::RingOnly);
        let io_apic = crate::devices::io_apic::IoApic::new(0..1, Arc::new(|_| Ok(())));
        let (mut port, input) = create(SerialInterrupt(io_apic.pin(0)), console);
        port.write(0, b"h");
        port.write(0, b"i\n");
        port.write(999, b"x");
        assert_eq!(nacre_protocol::console::last_lines(&file, 9).unwrap(), ["hi"]);
        input.enqueue(b"k");
        let mut byte = [0];
        port.read(0, &mut byte);
        assert_eq!(byte, *b"k");
        input.enqueue(&[0; 1000]);
        assert_eq!(input.free_space(), 0);
    }
}
