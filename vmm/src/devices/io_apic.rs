//! The I/O APIC (Intel 82093AA) for the interrupts of the devices that are not on the PCI bus. It has one pin
//! for each of these devices: KVM's own has 24, and Linux accesses it ten times for each. Called by vCPU
//! threads; a pin is raised by any thread.
//!
//! The devices raise edges. A pin that the guest sets to level-triggered delivers edges, too; an edge at a
//! masked pin is lost.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::{BusDevice, Half};
use crate::msi::{Message, SendMessage};

/// Size of the registers, in bytes.
pub const BYTES: u64 = 0x20;

/// Offset of IOREGSEL, which selects the register that [`WINDOW`] accesses.
const SELECT: u64 = 0x00;
/// Offset of IOWIN.
const WINDOW: u64 = 0x10;
/// Selected registers: identification, version, arbitration, and two per pin.
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const FIRST_REDIRECTION: u8 = 0x10;
/// Bits 27:24 of the identification.
const ID_BITS: u32 = 0xf << 24;
/// Version 0x11: there is no EOI register.
const VERSION_NUMBER: u32 = 0x11;

/// Bits of a redirection entry.
const VECTOR_AND_DELIVERY_MODE: u64 = 0x7ff;
const LOGICAL: u64 = 1 << 11;
const POLARITY: u64 = 1 << 13;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;
const WRITABLE: u64 =
    VECTOR_AND_DELIVERY_MODE | LOGICAL | POLARITY | LEVEL | MASKED | 0xff << DESTINATION_SHIFT;

/// The registers, for the bus. Clones are the same I/O APIC.
#[derive(Clone)]
pub struct IoApic {
    first_gsi: u8,
    state: Arc<Mutex<State>>,
}

/// One pin, for the device that is connected to it.
pub struct Pin {
    state: Arc<Mutex<State>>,
    /// None if there is no such pin.
    index: Option<usize>,
}

/// What the guest has written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    select: u8,
    id: u32,
    /// One entry per pin.
    redirections: Vec<u64>,
}

struct State {
    select: u8,
    id: u32,
    /// One entry per pin.
    redirections: Vec<u64>,
    send: SendMessage,
}

impl IoApic {
    /// An I/O APIC with one masked pin for each of `gsis`, at most 120. Interrupts go to `send`.
    #[must_use]
    pub fn new(gsis: Range<u8>, send: SendMessage) -> Self {
        let state = State {
            select: 0,
            id: 0,
            redirections: vec![MASKED; gsis.len()],
            send,
        };
        Self {
            first_gsi: gsis.start,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// What the guest has written.
    #[must_use]
    pub fn save(&self) -> IoApicState {
        let state = lock(&self.state);
        IoApicState {
            select: state.select,
            id: state.id,
            redirections: state.redirections.clone(),
        }
    }

    /// Sets what the guest has written. No interrupt is sent. False if `saved` has another number of pins.
    #[must_use]
    pub fn restore(&self, saved: &IoApicState) -> bool {
        let mut state = lock(&self.state);
        let fits = state.redirections.len() == saved.redirections.len();
        if fits {
            state.select = saved.select;
            state.id = saved.id & ID_BITS;
            state.redirections = saved.redirections.iter().map(|entry| entry & WRITABLE).collect();
        }
        fits
    }

    /// The pin with number `gsi`. Raising one that does not exist has no effect.
    #[must_use]
    pub fn pin(&self, gsi: u8) -> Pin {
        Pin {
            state: Arc::clone(&self.state),
            index: gsi.checked_sub(self.first_gsi).map(usize::from),
        }
    }
}

impl Pin {
    /// Raises an interrupt, unless the guest has masked it.
    ///
    /// # Errors
    /// The error of KVM, if it does not accept the message that the guest has set up.
    pub fn raise(&self) -> io::Result<()> {
        let state = lock(&self.state);
        match self
            .index
            .and_then(|index| state.redirections.get(index))
            .copied()
        {
            Some(entry) if entry & MASKED == 0 => (state.send)(message(entry)),
            _ => Ok(()),
        }
    }
}

/// The message that a redirection entry stands for (Intel SDM volume 3, 11.11).
fn message(entry: u64) -> Message {
    let logical = if entry & LOGICAL != 0 { 1 << 2 } else { 0 };
    Message {
        address: 0xfee0_0000 | entry >> DESTINATION_SHIFT << 12 | logical,
        data: Half::Low.of(entry & VECTOR_AND_DELIVERY_MODE),
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// The pin and the half of its entry that are selected.
    fn selected_redirection(&self) -> Option<(usize, Half)> {
        let index = self.select.checked_sub(FIRST_REDIRECTION)?;
        let half = if index & 1 == 0 { Half::Low } else { Half::High };
        Some((usize::from(index >> 1), half))
    }

    fn read_window(&self) -> u32 {
        let last_pin = u32::try_from(self.redirections.len().saturating_sub(1)).unwrap_or(0);
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_NUMBER | last_pin << 16,
            _ => self.selected_redirection().map_or(0, |(pin, half)| {
                self.redirections.get(pin).map_or(0, |entry| half.of(*entry))
            }),
        }
    }

    fn write_window(&mut self, value: u32) {
        if self.select == ID {
            self.id = value & ID_BITS;
        } else if let Some((pin, half)) = self.selected_redirection()
            && let Some(entry) = self.redirections.get_mut(pin)
        {
            *entry = half.replace(*entry, value) & WRITABLE;
        }
    }
}

impl BusDevice for IoApic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        match (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            (SELECT, Ok(word)) => *word = u32::from(state.select).to_le_bytes(),
            (WINDOW, Ok(word)) => *word = state.read_window().to_le_bytes(),
            _ => data.fill(0),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut state = lock(&self.state);
        match (offset, <[u8; 4]>::try_from(data)) {
            (SELECT, Ok([select, ..])) => state.select = select,
            (WINDOW, Ok(word)) => state.write_window(u32::from_le_bytes(word)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::virtio::testing::Prng;

    struct Guest {
        io_apic: IoApic,
        messages: Receiver<Message>,
    }

    impl Guest {
        fn new() -> Self {
            let (sender, messages) = channel();
            let send = move |message| sender.send(message).map_err(io::Error::other);
            Self {
                io_apic: IoApic::new(4..6, Arc::new(send)),
                messages,
            }
        }

        fn read(&mut self, register: u32) -> u32 {
            self.io_apic.write(SELECT, &register.to_le_bytes());
            let mut word = [0xee; 4];
            self.io_apic.read(WINDOW, &mut word);
            u32::from_le_bytes(word)
        }

        fn write(&mut self, register: u32, value: u32) {
            self.io_apic.write(SELECT, &register.to_le_bytes());
            self.io_apic.write(WINDOW, &value.to_le_bytes());
        }
    }

    #[test]
    fn identification_and_version_are_those_of_two_pins() {
        let mut guest = Guest::new();
        assert_eq!(guest.read(1), 0x0001_0011);
        guest.write(0, u32::MAX);
        assert_eq!((guest.read(0), guest.read(2)), (0x0f00_0000, 0x0f00_0000));
        assert_eq!(guest.read(0x10), 1 << 16, "masked");
        for register in [3, 0xf, 0x14, 0xff] {
            guest.write(register, u32::MAX);
            assert_eq!(guest.read(register), 0, "{register:#x}");
        }
    }

    #[test]
    fn an_unmasked_pin_sends_the_message_of_its_entry() {
        let mut guest = Guest::new();
        let pins = [4, 5, 6, 3].map(|gsi| guest.io_apic.pin(gsi));
        guest.write(0x13, 0x0300_0000);
        guest.write(0x12, 1 << 11 | 1 << 8 | 0x31);
        for pin in &pins {
            pin.raise().unwrap();
        }
        let expected = Message {
            address: 0xfee0_3004,
            data: 0x131,
        };
        assert_eq!(guest.messages.try_iter().collect::<Vec<_>>(), [expected]);
        guest.write(0x12, 1 << 16 | 0x31);
        pins[1].raise().unwrap();
        guest.write(0x12, 0x31);
        assert!(
            guest.messages.try_recv().is_err(),
            "an edge at a masked pin is lost"
        );
    }

    #[test]
    fn read_only_bits_and_other_accesses_change_nothing() {
        let mut guest = Guest::new();
        guest.write(0x10, u32::MAX);
        guest.write(0x11, u32::MAX);
        assert_eq!((guest.read(0x10), guest.read(0x11)), (0x0001_afff, 0xff00_0000));
        guest.io_apic.write(SELECT, &0x10u32.to_le_bytes());
        for (offset, length) in [
            (WINDOW, 1),
            (WINDOW, 2),
            (WINDOW, 8),
            (4, 4),
            (0x14, 4),
            (0x1f, 1),
            (SELECT, 1),
        ] {
            guest.io_apic.write(offset, &vec![0; length]);
            let mut data = vec![0xee; length];
            guest.io_apic.read(offset, &mut data);
            assert_eq!(data, vec![0; length], "{length} bytes at {offset:#x}");
        }
        assert_eq!(guest.read(0x10), 0x0001_afff);
    }

    #[test]
    fn random_accesses_do_not_panic() {
        let mut guest = Guest::new();
        let mut prng = Prng(0x5eed_0007);
        let pin = guest.io_apic.pin(4);
        for _ in 0..20_000 {
            let offset = if prng.below(2) == 0 {
                WINDOW
            } else {
                prng.below(BYTES) & !3
            };
            guest.io_apic.write(offset, &prng.next().to_le_bytes()[..4]);
            guest.io_apic.read(offset, &mut [0; 4]);
            pin.raise().unwrap();
            guest.messages.try_iter().for_each(drop);
        }
    }

    #[test]
    fn a_saved_state_is_restored_and_nothing_is_sent() {
        let mut guest = Guest::new();
        guest.write(0x10, 0x31);
        guest.write(0x13, 3 << 24);
        guest.write(0, 5 << 24);
        let saved = guest.io_apic.save();
        let mut restored = Guest::new();
        assert!(restored.io_apic.restore(&saved));
        assert_eq!(restored.io_apic.save(), saved);
        assert!(restored.messages.try_recv().is_err());
        for register in [0, 0x10, 0x11, 0x12, 0x13] {
            assert_eq!(restored.read(register), guest.read(register), "{register:#x}");
        }
        restored.io_apic.pin(4).raise().unwrap();
        assert_eq!(restored.messages.try_iter().count(), 1);
        let more = IoApic::new(4..7, Arc::new(|_| Ok(())));
        assert!(!more.restore(&saved), "it has three pins");
    }
}
