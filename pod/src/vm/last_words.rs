//! The VMM's standard error: a pipe that is always read (a VMM never waits for whoever reads the shim's log), copied to
//! the log up to a bound, the last lines kept for the failure record.

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;

/// Lines kept.
const KEPT: usize = 20;
/// Longest line kept or logged, bytes.
const MAX_LINE: usize = 512;
/// Bytes copied to the log in a pod's life. The guest may choose them (its console goes here where that is configured).
const MAX_LOGGED: usize = 1024 * 1024;

/// The last lines that the VMM wrote.
#[derive(Debug, Default)]
pub struct LastWords(Mutex<VecDeque<String>>);

impl LastWords {
    /// The lines, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }

    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// Reads `pipe` to its end.
    pub async fn read(&self, pipe: io::PipeReader) {
        if let Err(error) = self.read_to_end(pipe).await {
            crate::log::warn(format_args!("reading the VMM's standard error: {error}"));
        }
    }

    async fn read_to_end(&self, pipe: io::PipeReader) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&pipe)?;
        rustix::fs::fcntl_setfl(&pipe, flags | rustix::fs::OFlags::NONBLOCK)?;
        let pipe = crate::sys::watch(pipe.into())?;
        let mut buffer = [0; 4096];
        let mut partial = Vec::new();
        let mut left = MAX_LOGGED;
        loop {
            let mut ready = pipe.readable().await?;
            let length = match ready.try_io(|pipe| Ok(rustix::io::read(pipe.get_ref(), &mut buffer)?)) {
                Ok(length) => length?,
                Err(_would_block) => continue,
            };
            for byte in buffer.get(..length).unwrap_or_default() {
                if *byte == b'\n' {
                    self.finish(&mut partial, &mut left);
                } else if partial.len() < MAX_LINE {
                    partial.push(*byte);
                }
            }
            if length == 0 {
                self.finish(&mut partial, &mut left);
                return Ok(());
            }
        }
    }

    fn finish(&self, partial: &mut Vec<u8>, left: &mut usize) {
        let line = String::from_utf8_lossy(partial).trim_end().to_owned();
        partial.clear();
        if line.is_empty() {
            return;
        }
        if *left > 0 {
            *left = left.saturating_sub(line.len() + 1);
            crate::log::info(format_args!("vmm: {line}"));
            if *left == 0 {
                crate::log::warn("vmm: it writes too much; no more of it is logged");
            }
        }
        self.push(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[tokio::test]
    async fn keeps_the_last_lines_cut() {
        let (reader, mut writer) = io::pipe().unwrap();
        for n in 0..30 {
            writeln!(writer, "line {n}").unwrap();
        }
        writer.write_all(&[b'x'; 2000]).unwrap();
        drop(writer);
        let words = LastWords::default();
        words.read(reader).await;
        let lines = words.lines();
        assert_eq!(lines.len(), KEPT);
        assert_eq!(lines[KEPT - 2], "line 29");
        assert_eq!(lines[KEPT - 1].len(), MAX_LINE);
    }
}
