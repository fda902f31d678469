//! The VM's console on the host: its last lines are kept for the report of a failure, all of it can be shown.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

/// How many lines a report shows: a kernel panic with its trace, and what came before.
const KEPT: usize = 60;
/// Longest kept line, bytes.
const LONGEST: usize = 400;

/// The last lines, shared between the thread that reads and the one that reports.
#[derive(Debug, Clone, Default)]
pub struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    /// Reads `from` to its end; shows it where `verbose`, and writes it to the file that NACRE_LAB_LOG names.
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

    /// The kept lines as one indented text, for an error.
    pub fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_empty() {
            return "the console said nothing".to_owned();
        }
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        format!("the console's last lines:\n    {}", lines.join("\n    "))
    }
}
