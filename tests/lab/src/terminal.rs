//! The caller's terminal while a command inside has one: raw, and as it was afterwards.

use std::io;

use rustix::stdio;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Standard input as a raw terminal, until dropped.
#[derive(Debug)]
pub struct Raw(Termios);

impl Raw {
    /// Makes standard input raw.
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
            eprintln!("lab: the terminal stays raw ({error}); run: reset");
        }
    }
}

/// Whether the command is to have a terminal: it would have one without the lab.
pub fn wanted() -> bool {
    isatty(stdio::stdin()) && isatty(stdio::stdout())
}

/// Rows and columns of the caller's terminal.
pub fn size() -> io::Result<(u16, u16)> {
    let size = tcgetwinsize(stdio::stdin())?;
    Ok((size.ws_row, size.ws_col))
}
