//! The caller's terminal: set to raw mode while the command uses one, restored afterwards.

use std::io;

use rustix::stdio;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Standard input in raw mode; dropping it restores the previous mode.
#[derive(Debug)]
pub struct Raw(Termios);

impl Raw {
    /// Sets standard input to raw mode.
    pub fn enter() -> io::Result<Self> {
        let before = tcgetattr(stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(stdio::stdin(), OptionalActions::Now, &self.0) {
            eprintln!("lab: cannot restore the terminal's mode: {error}; run: reset");
        }
    }
}

/// Whether the command gets a terminal: standard input and output are one here.
pub fn wanted() -> bool {
    isatty(stdio::stdin()) && isatty(stdio::stdout())
}

/// Rows and columns of the caller's terminal.
pub fn size() -> io::Result<(u16, u16)> {
    let size = tcgetwinsize(stdio::stdin())?;
    Ok((size.ws_row, size.ws_col))
}
