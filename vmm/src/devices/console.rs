//! Where the guest's console goes: the ring that outlives the VM, and standard error or output when somebody reads.
//! Called by the serial port on vCPU threads, flushed by the main thread at the VM's end. It never fails the guest:
//! a sink that can't be written is dropped, said once.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_protocol::console;

use crate::config::ConsoleTo;

/// Longest piece of a line that is held back, bytes.
const MAX_PENDING: usize = 256;

/// The console's sinks, shared by the serial port and the main thread.
#[derive(Debug, Clone)]
pub struct Console(Arc<Mutex<Sinks>>);

#[derive(Debug)]
struct Sinks {
    /// The line so far: a write to the ring for each byte would cost more than the guest's exit.
    pending: Vec<u8>,
    ring: Option<console::Writer>,
    to: ConsoleTo,
}

impl Console {
    /// A console that goes to `ring`, if there is one, and to where `to` says.
    #[must_use]
    pub fn new(ring: Option<File>, to: ConsoleTo) -> Self {
        let sinks = Sinks {
            pending: Vec::with_capacity(MAX_PENDING),
            ring: ring.map(console::Writer::new),
            to,
        };
        Self(Arc::new(Mutex::new(sinks)))
    }

    /// Writes out what is held back.
    pub fn finish(&self) {
        self.lock().write_pending();
    }

    fn lock(&self) -> MutexGuard<'_, Sinks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut sinks = self.lock();
        for byte in bytes {
            sinks.pending.push(*byte);
            if *byte == b'\n' || sinks.pending.len() >= MAX_PENDING {
                sinks.write_pending();
            }
        }
        if sinks.to == ConsoleTo::Terminal {
            let mut out = io::stdout().lock();
            if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
                sinks.to = ConsoleTo::Ring;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sinks {
    fn write_pending(&mut self) {
        let Self { pending, ring, to } = self;
        if let Some(Err(error)) = ring.as_mut().map(|ring| ring.write(pending)) {
            eprintln!("nacre-vmm: console ring: {error}; it stays as it is");
            *ring = None;
        }
        if *to == ConsoleTo::Stderr && io::stderr().write_all(pending).is_err() {
            *to = ConsoleTo::Ring;
        }
        pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> (Console, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(console::RING_BYTES).unwrap();
        (
            Console::new(Some(file.try_clone().unwrap()), ConsoleTo::Ring),
            file,
        )
    }

    #[test]
    fn a_line_is_in_the_ring_when_it_ends_and_the_rest_at_the_end() {
        let (mut console, file) = ring();
        console.write_all(b"one\nhalf").unwrap();
        assert_eq!(console::last_lines(&file, 9).unwrap(), ["one"]);
        console.finish();
        assert_eq!(console::last_lines(&file, 9).unwrap(), ["one", "half"]);
    }

    #[test]
    fn a_line_without_end_is_held_back_only_so_long() {
        let (mut console, file) = ring();
        console.write_all(&[b'x'; MAX_PENDING]).unwrap();
        assert_eq!(console::last_lines(&file, 1).unwrap()[0].len(), MAX_PENDING);
    }
}
