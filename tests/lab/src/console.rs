//! Reads the VM's console: keeps the last lines for error messages, prints all of it with `--verbose`, and
//! writes it to the file that NACRE_LAB_LOG names.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

/// Lines kept for an error message: enough for a kernel panic with its trace.
const KEPT: usize = 60;
/// A kept line is truncated to this length, bytes.
const LONGEST: usize = 400;

/// The last lines of the console, shared by the threads that read it and the thread that reports an error.
#[derive(Debug, Clone, Default)]
pub struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    /// Reads `from` to its end. With `verbose`, also prints it on standard error.
    pub fn read(&self, from: impl Read, verbose: bool) -> io::Result<()> {
        let mut log = std::env::var_os("NACRE_LAB_LOG").map(File::create).transpose()?;
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line)? > 0 {
            if let Some(log) = &mut log {
                log.write_all(&line)?;
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if verbose {
                eprintln!("lab console: {text}\r");
            }
            self.push(text);
            line.clear();
        }
        Ok(())
    }

    fn push(&self, mut line: String) {
        let end = (0..=LONGEST.min(line.len()))
            .rev()
            .find(|at| line.is_char_boundary(*at));
        line.truncate(end.unwrap_or(0));
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The kept lines, indented, as the end of an error message.
    pub fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_empty() {
            return "the console printed nothing".to_owned();
        }
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        format!("the console's last lines:\n    {}", lines.join("\n    "))
    }
}
