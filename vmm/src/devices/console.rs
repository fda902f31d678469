//! The output of the guest's console: to a ring that survives the VMM, and to standard error or standard
//! output if configured. Called by the serial port on vCPU threads, and flushed by the main thread when the
//! VM ends. It never fails: an output that can't be written is logged and not used again.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_protocol::console;

use crate::config::ConsoleOutput;

/// Most bytes of an unfinished line that are buffered.
const MAX_PENDING: usize = 256;

/// A handle on the console's outputs; clones share them.
#[derive(Debug, Clone)]
pub struct Console(Arc<Mutex<Outputs>>);

#[derive(Debug)]
struct Outputs {
    /// The unfinished line: writing each byte to the ring would cost more than the guest's exit.
    pending: Vec<u8>,
    ring: Option<console::Writer>,
    output: ConsoleOutput,
}

impl Console {
    /// A console that writes to `ring`, if it is set, and to `output`.
    #[must_use]
    pub fn new(ring: Option<File>, output: ConsoleOutput) -> Self {
        let outputs = Outputs {
            pending: Vec::with_capacity(MAX_PENDING),
            ring: ring.map(console::Writer::new),
            output,
        };
        Self(Arc::new(Mutex::new(outputs)))
    }

    /// Writes the unfinished line.
    pub fn flush_pending(&self) {
        self.lock().write_pending();
    }

    fn lock(&self) -> MutexGuard<'_, Outputs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut outputs = self.lock();
        for byte in bytes {
            outputs.pending.push(*byte);
            if *byte == b'\n' || outputs.pending.len() >= MAX_PENDING {
                outputs.write_pending();
            }
        }
        if outputs.output == ConsoleOutput::Terminal {
            let mut stdout = io::stdout().lock();
            if stdout.write_all(bytes).and_then(|()| stdout.flush()).is_err() {
                outputs.output = ConsoleOutput::RingOnly;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Outputs {
    fn write_pending(&mut self) {
        let Self {
            pending,
            ring,
            output,
        } = self;
        if let Some(Err(error)) = ring.as_mut().map(|ring| ring.write(pending)) {
            eprintln!("nacre-vmm: writing the console's ring: {error}; it gets no more output");
            *ring = None;
        }
        let is_copied = matches!(output, ConsoleOutput::Stderr | ConsoleOutput::QuietStderr);
        if is_copied && io::stderr().write_all(pending).is_err() {
            *output = ConsoleOutput::RingOnly;
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
            Console::new(Some(file.try_clone().unwrap()), ConsoleOutput::RingOnly),
            file,
        )
    }

    #[test]
    fn finished_lines_are_written_at_once_and_the_rest_when_flushed() {
        let (mut console, file) = ring();
        console.write_all(b"one\nhalf").unwrap();
        assert_eq!(console::last_lines(&file, 9).unwrap(), ["one"]);
        console.flush_pending();
        assert_eq!(console::last_lines(&file, 9).unwrap(), ["one", "half"]);
    }

    #[test]
    fn an_unfinished_line_is_buffered_up_to_the_limit() {
        let (mut console, file) = ring();
        console.write_all(&[b'x'; MAX_PENDING]).unwrap();
        assert_eq!(console::last_lines(&file, 1).unwrap()[0].len(), MAX_PENDING);
    }
}
