//! The guest's serial port, a 16550. Called by vCPU threads. Its output goes to [`Console`]; its input comes
//! from the main thread through [`SerialInput`], in standalone mode only.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
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
    halves(Serial::new(interrupt, console))
}

/// As [`create`], for a port that contains what `saved` says. None if that is more than the FIFO holds.
/// Raises the interrupts that `saved` has pending, which has no effect while the interrupt's pin is masked.
#[must_use]
pub fn restore(
    saved: &SerialState,
    interrupt: SerialInterrupt,
    console: Console,
) -> Option<(SerialPort, SerialInput)> {
    let ([baud_divisor_low, baud_divisor_high], [line_control, line_status]) = (saved.divisor, saved.line);
    let [modem_control, modem_status] = saved.modem;
    let state = vm_superio::SerialState {
        baud_divisor_low,
        baud_divisor_high,
        interrupt_enable: saved.interrupt_enable,
        interrupt_identification: saved.interrupt_identification,
        line_control,
        line_status,
        modem_control,
        modem_status,
        scratch: saved.scratch,
        in_buffer: saved.received.clone(),
    };
    Serial::from_state(&state, interrupt, NoEvents, console)
        .ok()
        .map(halves)
}

fn halves(uart: Uart) -> (SerialPort, SerialInput) {
    let uart = Arc::new(Mutex::new(uart));
    (SerialPort(Arc::clone(&uart)), SerialInput(uart))
}

/// What the registers and the receive FIFO contain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line: [u8; 2],
    modem: [u8; 2],
    scratch: u8,
    received: Vec<u8>,
}

impl SerialInput {
    /// What the port contains.
    #[must_use]
    pub fn save(&self) -> SerialState {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner).state();
        SerialState {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line: [state.line_control, state.line_status],
            modem: [state.modem_control, state.modem_status],
            scratch: state.scratch,
            received: state.in_buffer,
        }
    }

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

    #[test]
    fn a_saved_port_is_restored() {
        let pin = || SerialInterrupt(crate::devices::io_apic::IoApic::new(0..1, Arc::new(|_| Ok(()))).pin(0));
        let console = || Console::new(None, ConsoleOutput::RingOnly);
        let (mut port, input) = create(pin(), console());
        // The line control register with the divisor latch, the divisor, and the scratch register.
        for (register, value) in [(3, 0x83), (0, 12), (3, 3), (1, 5), (7, 0xa5)] {
            port.write(register, &[value]);
        }
        input.enqueue(b"typed");
        let saved = input.save();
        let (mut restored, restored_input) = restore(&saved, pin(), console()).unwrap();
        assert_eq!(restored_input.save(), saved);
        let read = |port: &mut SerialPort, register| {
            let mut byte = [0];
            port.read(register, &mut byte);
            byte[0]
        };
        for register in 1..8 {
            assert_eq!(
                read(&mut restored, register),
                read(&mut port, register),
                "{register}"
            );
        }
        let received: Vec<u8> = (0..5).map(|_| read(&mut restored, 0)).collect();
        assert_eq!(received, b"typed");
        let mut too_much = saved;
        too_much.received = vec![0; 1000];
        assert!(restore(&too_much, pin(), console()).is_none());
    }
}
