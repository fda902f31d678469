//! The VMM's standard error: a pipe that is always read, so that the VMM never blocks on it, and copied to
//! the shim's log up to a limit. The last lines are kept for the failure record. Read by a task of
//! [`super::monitor`].

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;

use nacre_protocol::text::printable;

/// How many lines are kept.
const KEPT: usize = 20;
/// Longest line that is kept or logged, bytes; the rest of it is dropped.
const MAX_LINE: usize = 512;
/// Most bytes that are copied to the log in a pod's life. The guest chooses them if its console is copied to
/// standard error (`console_to_log`).
const MAX_LOGGED: usize = 1024 * 1024;

/// The last [`KEPT`] lines of the VMM's standard error.
#[derive(Debug, Default)]
pub struct StderrTail(Mutex<VecDeque<String>>);

impl StderrTail {
    /// The lines, oldest first, without control characters.
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

    /// Reads `pipe` until the VMM closes it.
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
                    self.finish_line(&mut partial, &mut left);
                } else if partial.len() < MAX_LINE {
                    partial.push(*byte);
                }
            }
            if length == 0 {
                self.finish_line(&mut partial, &mut left);
                return Ok(());
            }
            drop(ready);
            // A VMM that writes without a pause must not keep the only thread from other tasks.
            tokio::task::yield_now().await;
        }
    }

    /// Keeps and logs the line in `partial` and clears it; `left` is how many bytes may still be logged.
    fn finish_line(&self, partial: &mut Vec<u8>, left: &mut usize) {
        let line = printable(String::from_utf8_lossy(partial).trim_end(), MAX_LINE);
        partial.clear();
        if line.is_empty() {
            return;
        }
        if *left > 0 {
            *left = left.saturating_sub(line.len() + 1);
            crate::log::info(format_args!("vmm: {line}"));
            if *left == 0 {
                crate::log::warn("the VMM wrote more than 1 MiB to standard error: the rest is not logged");
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
    async fn the_last_lines_are_kept_short_and_without_control_characters() {
        let (reader, mut writer) = io::pipe().unwrap();
        for n in 0..30 {
            writeln!(writer, "line {n}\x1b").unwrap();
        }
        writer.write_all(&[b'x'; 2000]).unwrap();
        drop(writer);
        let tail = StderrTail::default();
        tail.read(reader).await;
        let lines = tail.lines();
        assert_eq!(lines.len(), KEPT);
        assert_eq!(lines[KEPT - 2], "line 29\\u{1b}");
        assert_eq!(lines[KEPT - 1].len(), MAX_LINE);
    }
}
