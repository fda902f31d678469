//! The VM generation id: 16 bytes in guest memory that change if the VM is restored from a snapshot, so that
//! the guest's kernel reseeds its random number generator instead of repeating numbers. The machine creates
//! it and calls [`GenerationId::renew`]; the guest reads the memory without an exit. How the guest finds it
//! is in [`crate::acpi`].

use std::io;
use std::sync::Arc;

use vm_memory::{Bytes as _, GuestAddress};

use super::io_apic::Pin;
use crate::layout;
use crate::memory::Memory;

/// Why the id was not set, or the guest not notified.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has no random bytes.
    #[error("random bytes for the VM generation id: {0}")]
    Entropy(io::Error),
    /// Guest memory ends below the id's address.
    #[error("writing the VM generation id: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The interrupt was not raised: the guest does not know of the new id.
    #[error("raising the interrupt of the VM generation id: {0}")]
    Interrupt(io::Error),
}

/// The id of one VM, at [`layout::GENERATION_ID`].
pub struct GenerationId {
    memory: Arc<Memory>,
    interrupt: Pin,
}

impl GenerationId {
    /// The id that `memory` has, which is none yet unless the VM was restored. `interrupt` is the pin of
    /// [`layout::GENERATION_ID_GSI`].
    #[must_use]
    pub fn new(memory: Arc<Memory>, interrupt: Pin) -> Self {
        Self { memory, interrupt }
    }

    /// Writes a new id, then notifies the guest.
    ///
    /// # Errors
    /// [`Error`]; only [`Error::Interrupt`] leaves a new id behind.
    pub fn renew(&self) -> Result<(), Error> {
        self.write_random()?;
        self.interrupt.raise().map_err(Error::Interrupt)
    }

    /// Writes an id without notifying the guest, which finds it at boot: 128 random bits, as the
    /// specification requires, so that no two VMs, and no two lives of one, have the same id.
    ///
    /// # Errors
    /// [`Error::Entropy`] or [`Error::Memory`].
    pub fn write_random(&self) -> Result<(), Error> {
        let mut id = [0; 16];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Error::Entropy(error.into()))?;
        Ok(self
            .memory
            .write_slice(&id, GuestAddress(layout::GENERATION_ID))?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::bus::BusDevice as _;
    use crate::devices::io_apic::IoApic;
    use crate::msi::Message;

    /// An I/O APIC whose only pin, 5, is not masked, and its messages.
    fn io_apic() -> (IoApic, Receiver<Message>) {
        let (sender, messages) = channel();
        let send = move |message| sender.send(message).map_err(io::Error::other);
        let mut io_apic = IoApic::new(5..6, Arc::new(send));
        io_apic.write(0, &[0x10, 0, 0, 0]);
        io_apic.write(0x10, &[0x31, 0, 0, 0]);
        (io_apic, messages)
    }

    fn read(memory: &Memory) -> [u8; 16] {
        memory.read_obj(GuestAddress(layout::GENERATION_ID)).unwrap()
    }

    #[test]
    fn each_id_is_new_and_only_a_change_interrupts_the_guest() {
        let memory = Arc::new(crate::memory::allocate(2 << 20).unwrap());
        let (io_apic, interrupts) = io_apic();
        let id = GenerationId::new(Arc::clone(&memory), io_apic.pin(5));
        assert_eq!(read(&memory), [0; 16], "a restored VM keeps its id");
        id.write_random().unwrap();
        let first = read(&memory);
        assert_ne!(first, [0; 16]);
        assert!(interrupts.try_recv().is_err(), "no interrupt at boot");
        id.renew().unwrap();
        assert_ne!(read(&memory), first);
        assert_eq!(interrupts.try_iter().count(), 1);
    }

    #[test]
    fn memory_without_room_for_the_id_is_an_error() {
        let memory = Arc::new(crate::memory::allocate(4096).unwrap());
        let (io_apic, _) = io_apic();
        let id = GenerationId::new(memory, io_apic.pin(5));
        assert!(matches!(id.write_random(), Err(Error::Memory(_))));
    }
}
