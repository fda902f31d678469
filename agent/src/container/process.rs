//! One process of a container that the host addresses by (container id, exec id): init, or an exec process.
//! It has an exit, a standard input and perhaps a terminal. Never waits for a pid itself: the reaper reports
//! the exit.

use std::os::fd::OwnedFd;
use std::sync::Mutex;

use rustix::process::Pid;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::lock;
use crate::error::Error;
use crate::reaper::Exit;
use crate::signal;
use crate::stdio::Streams;
use crate::terminal::resize;

/// A process, from the time it has a pid.
pub struct Process {
    pid: Pid,
    /// None until the reaper has collected the exit status.
    exit: watch::Sender<Option<Exit>>,
    input: Mutex<Option<AbortHandle>>,
    /// The master of the process's terminal.
    terminal: Mutex<Option<OwnedFd>>,
}

impl Process {
    /// The process `pid`, which must not have been reaped.
    pub fn new(pid: Pid) -> Self {
        Self {
            pid,
            exit: watch::Sender::new(None),
            input: Mutex::default(),
            terminal: Mutex::default(),
        }
    }

    /// Starts copying the process's streams. `terminal` is the master of its terminal, if it has one.
    pub fn attach(&self, streams: Streams, terminal: Option<OwnedFd>) {
        let input = streams.start();
        if self.exit.borrow().is_some() {
            if let Some(input) = input {
                input.abort();
            }
            return;
        }
        *lock(&self.input) = input;
        *lock(&self.terminal) = terminal;
    }

    /// The process's pid in the guest's pid namespace.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The same pid as the protocol carries it.
    pub fn pid_number(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Its exit, if the reaper has collected it.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits until the process has exited; returns at once if it has.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        loop {
            if let Some(exit) = *exit.borrow_and_update() {
                return exit;
            }
            // This cannot fail: `self` keeps the sender.
            let _ = exit.changed().await;
        }
    }

    /// Sends `signal` to the process. Its pid cannot have been reused: the reaper sets `exit` when it takes
    /// the pid.
    pub fn kill(&self, signal: i32) -> Result<(), Error> {
        if self.exit.borrow().is_some() {
            return Err(Error::ProcessFinished);
        }
        signal::send(self.pid, signal).map_err(Error::system("sending a signal"))
    }

    /// Sets the size of the process's terminal, in characters (0..=65535 each).
    pub fn resize(&self, width: u32, height: u32) -> Result<(), Error> {
        let characters = |number: u32| {
            u16::try_from(number).map_err(|_| Error::BadRequest {
                what: format!(
                    "expected a terminal width and height in 0..={}, got {number}",
                    u16::MAX
                ),
            })
        };
        let (width, height) = (characters(width)?, characters(height)?);
        if self.exit.borrow().is_some() {
            return Err(Error::ProcessFinished);
        }
        let terminal = lock(&self.terminal);
        let master = terminal.as_ref().ok_or(Error::NoTerminal)?;
        resize(master, width, height).map_err(Error::system("resizing a terminal"))
    }

    /// Records the exit, stops copying standard input and closes the terminal's master. The reaper calls
    /// this.
    pub fn exited(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
        if let Some(input) = lock(&self.input).take() {
            input.abort();
        }
        // Output that is still in the terminal is copied from a duplicate of this descriptor.
        drop(lock(&self.terminal).take());
    }
}
