//! The console ring: a memfd with the last bytes of the guest's serial console. The shim creates and reads
//! it, the VMM writes it, so that the output of a guest that has failed survives the VMM.
//!
//! Layout: an 8-byte little-endian count of all bytes ever written, then the ring. Byte `n` of the console is
//! at offset `8 + n % (RING_BYTES - 8)`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::text::printable;

/// Size of the memfd, bytes.
pub const RING_BYTES: u64 = 64 * 1024;
const HEADER: u64 = 8;
const CAPACITY: u64 = RING_BYTES - HEADER;
/// Longest line that [`last_lines`] returns, bytes.
const MAX_LINE: usize = 512;

/// Writes the ring, in the VMM.
#[derive(Debug)]
pub struct Writer {
    file: File,
    written: u64,
}

impl Writer {
    /// Writes to `file`, which must be empty and [`RING_BYTES`] long.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, written: 0 }
    }

    /// Appends `bytes`, over the oldest ones if the ring is full.
    ///
    /// # Errors
    /// If the file cannot be written.
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

/// The last `count` lines in the ring `file` that are not empty, oldest first, made [`printable`].
///
/// # Errors
/// If the file cannot be read, or is shorter than a console ring.
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
    fn the_last_lines_are_returned_escaped() {
        let (mut writer, file) = ring();
        assert!(last_lines(&file, 3).unwrap().is_empty());
        writer.write(b"one\r\ntwo\nthr\x1b[31mee\n\nfour").unwrap();
        assert_eq!(last_lines(&file, 3).unwrap(), ["two", "thr\\u{1b}[31mee", "four"]);
    }

    #[test]
    fn the_newest_bytes_replace_the_oldest() {
        let (mut writer, file) = ring();
        for n in 0..20_000 {
            writer.write(format!("line {n}\n").as_bytes()).unwrap();
        }
        assert_eq!(last_lines(&file, 2).unwrap(), ["line 19998", "line 19999"]);
        assert!(last_lines(&file, usize::MAX).unwrap().len() > 5_000);
    }
}
