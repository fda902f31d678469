//! The console ring: a memfd that the shim owns and the VMM writes, so that a guest's last words survive both.
//!
//! Layout: an 8-byte little-endian count of all bytes ever written, then the ring, where byte `n` of the console
//! stands at `8 + n % (RING_BYTES - 8)`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::text::printable;

/// Size of the memfd, bytes.
pub const RING_BYTES: u64 = 64 * 1024;
const HEADER: u64 = 8;
const CAPACITY: u64 = RING_BYTES - HEADER;
/// Longest line that [`last_lines`] gives, bytes; the guest chooses what it writes.
const MAX_LINE: usize = 512;

/// The VMM's end.
#[derive(Debug)]
pub struct Writer {
    file: File,
    written: u64,
}

impl Writer {
    /// Takes over an empty file of [`RING_BYTES`].
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, written: 0 }
    }

    /// Appends `bytes`; of more than the ring holds, the last.
    ///
    /// # Errors
    /// Where the file can't be written.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(4096) {
            let at = self.written % CAPACITY;
            let until_end = usize::try_from(CAPACITY - at)
                .unwrap_or(usize::MAX)
                .min(chunk.len());
            let (first, rest) = chunk.split_at(until_end);
            self.file.write_all_at(first, HEADER + at)?;
            self.file.write_all_at(rest, HEADER)?;
            self.written += chunk.len() as u64;
        }
        self.file.write_all_at(&self.written.to_le_bytes(), 0)
    }
}

/// The last `count` lines in the ring `file`, oldest first; control characters are escaped.
///
/// # Errors
/// Where the file can't be read or is no console ring.
pub fn last_lines(file: &File, count: usize) -> io::Result<Vec<String>> {
    let mut header = [0; 8];
    file.read_exact_at(&mut header, 0)?;
    let written = u64::from_le_bytes(header);
    let length = written.min(CAPACITY);
    let start = (written - length) % CAPACITY;
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let (first, rest) =
        bytes.split_at_mut(usize::try_from((CAPACITY - start).min(length)).map_err(io::Error::other)?);
    file.read_exact_at(first, HEADER + start)?;
    file.read_exact_at(rest, HEADER)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = text
        .lines()
        .rev()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .take(count)
        .map(|line| printable(&line.replace('\t', " "), MAX_LINE))
        .collect();
    lines.reverse();
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> (Writer, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(RING_BYTES).unwrap();
        (Writer::new(file.try_clone().unwrap()), file)
    }

    #[test]
    fn gives_the_last_lines_escaped() {
        let (mut writer, file) = ring();
        assert!(last_lines(&file, 3).unwrap().is_empty());
        writer.write(b"one\r\ntwo\nthr\x1b[31mee\n\nfour").unwrap();
        assert_eq!(last_lines(&file, 3).unwrap(), ["two", "thr\\u{1b}[31mee", "four"]);
    }

    #[test]
    fn wraps_around() {
        let (mut writer, file) = ring();
        for n in 0..20_000 {
            writer.write(format!("line {n}\n").as_bytes()).unwrap();
        }
        assert_eq!(last_lines(&file, 2).unwrap(), ["line 19998", "line 19999"]);
        assert!(last_lines(&file, usize::MAX).unwrap().len() > 5_000);
    }
}
