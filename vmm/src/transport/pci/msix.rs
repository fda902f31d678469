//! MSI-X of one function (PCI Local Bus 3.0, 6.8.2): the table of vectors, their masks and pending bits.
//! Messages go to a closure, so nothing here depends on KVM. Called by the function, which holds a lock: a
//! vector that is masked sends no message once the driver's write has returned.

use serde::{Deserialize, Serialize};

use crate::bus::Half;
use crate::msi::Message;

/// VIRTIO_MSI_NO_VECTOR: no interrupt is mapped (virtio 1.2, 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;
/// Size of a table entry, in bytes: address, data, vector control.
pub const ENTRY_BYTES: usize = 16;
/// Bit 0 of the vector control: the vector is masked. All other bits are reserved.
const MASKED: u32 = 1;

/// A table entry with its pending bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vector {
    message: Message,
    masked: bool,
    pending: bool,
}

/// Bits that decide for the function as a whole whether it sends messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Control {
    /// MSI-X enable (message control, bit 15).
    pub enabled: bool,
    /// Function mask (message control, bit 14).
    pub function_masked: bool,
    /// Bus master enable (command register, bit 2). Without it a function may write no memory, so it sends no
    /// message.
    pub bus_master: bool,
}

/// The vectors of a function.
#[derive(Debug)]
pub struct Msix {
    vectors: Vec<Vector>,
    control: Control,
}

impl Msix {
    /// `count` masked vectors; MSI-X is disabled.
    #[must_use]
    pub fn new(count: u16) -> Self {
        let vector = Vector {
            message: Message::default(),
            masked: true,
            pending: false,
        };
        Self {
            vectors: vec![vector; usize::from(count)],
            control: Control::default(),
        }
    }

    /// `vector` if it exists, otherwise [`NO_VECTOR`]: what a vector register reads as after it was written.
    #[must_use]
    pub fn check(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.vectors.len() {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// Whether MSI-X is enabled, so that the function uses no other interrupt.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.control.enabled
    }

    /// Raises `vector`: passes its message to `send`, or sets its pending bit if it is masked; false if it
    /// did that. Has no effect if there is no such vector or MSI-X is disabled.
    pub fn raise(&mut self, vector: u16, send: &mut dyn FnMut(Message)) -> bool {
        let control = self.control;
        let vector = self
            .vectors
            .get_mut(usize::from(vector))
            .filter(|_| control.enabled);
        vector.is_none_or(|vector| {
            vector.pending = true;
            vector.send_if_pending(control, send);
            !vector.pending
        })
    }

    /// Sets the bits that concern all vectors, and sends what is pending and no longer masked.
    pub fn set_control(&mut self, control: Control, send: &mut dyn FnMut(Message)) {
        self.control = control;
        for vector in &mut self.vectors {
            vector.send_if_pending(control, send);
        }
    }

    /// Writes 4 or 8 aligned `bytes` at `offset` of the table, and sends a message that is pending and no
    /// longer masked. False if the access is invalid; it is then ignored.
    pub fn write_table(&mut self, offset: usize, bytes: &[u8], send: &mut dyn FnMut(Message)) -> bool {
        if !matches!(bytes.len(), 4 | 8) || !offset.is_multiple_of(bytes.len()) {
            return false;
        }
        let control = self.control;
        let Some(vector) = self.vectors.get_mut(offset.div_euclid(ENTRY_BYTES)) else {
            return false;
        };
        for (index, word) in bytes.chunks_exact(4).enumerate() {
            let field = offset.rem_euclid(ENTRY_BYTES).div_euclid(4).saturating_add(index);
            if let Some(word) = word.first_chunk() {
                vector.set_field(field, u32::from_le_bytes(*word));
            }
        }
        vector.send_if_pending(control, send);
        true
    }

    /// Clears all pending bits: the events behind them are gone.
    pub fn clear_pending(&mut self) {
        self.vectors.iter_mut().for_each(|vector| vector.pending = false);
    }

    /// The table and the pending bits.
    #[must_use]
    pub fn save(&self) -> Vec<Vector> {
        self.vectors.clone()
    }

    /// Sets the table, the pending bits, and the bits that concern all vectors. Sends nothing. False if there
    /// are more vectors or fewer.
    pub fn restore(&mut self, vectors: &[Vector], control: Control) -> bool {
        self.control = control;
        let fits = vectors.len() == self.vectors.len();
        if fits {
            self.vectors.copy_from_slice(vectors);
        }
        fits
    }

    /// What the table reads as.
    pub fn table(&self) -> Vec<u8> {
        let entry = |vector: &Vector| {
            let control = if vector.masked { MASKED } else { 0 };
            let [address, rest] = [
                vector.message.address,
                u64::from(control) << 32 | u64::from(vector.message.data),
            ];
            [address.to_le_bytes(), rest.to_le_bytes()].concat()
        };
        self.vectors.iter().flat_map(entry).collect()
    }

    /// What the pending bit array reads as: one bit per vector in words of 64.
    pub fn pending_bits(&self) -> Vec<u8> {
        let word = |vectors: &[Vector]| {
            let bits = (0u32..).zip(vectors).filter(|(_, vector)| vector.pending);
            bits.fold(0u64, |word, (bit, _)| word | 1u64.wrapping_shl(bit))
        };
        self.vectors
            .chunks(64)
            .flat_map(|vectors| word(vectors).to_le_bytes())
            .collect()
    }
}

impl Vector {
    /// Sets 32 bits of the entry, counted from 0.
    fn set_field(&mut self, field: usize, value: u32) {
        match field {
            0 => self.message.address = Half::Low.replace(self.message.address, value & !3),
            1 => self.message.address = Half::High.replace(self.message.address, value),
            2 => self.message.data = value,
            _ => self.masked = value & MASKED != 0,
        }
    }

    fn send_if_pending(&mut self, control: Control, send: &mut dyn FnMut(Message)) {
        let may_send = control.enabled && !control.function_masked && control.bus_master && !self.masked;
        if self.pending && may_send {
            self.pending = false;
            send(self.message);
        }
    }
}
