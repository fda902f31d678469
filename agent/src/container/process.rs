//! One process of a container that the host knows by name: init, or an exec. Its end, its standard input, its terminal.

use std::os::fd::OwnedFd;
use std::sync::Mutex;

use rustix::process::Pid;
use tokio::sync::watch;

use super::lock;
use crate::error::Error;
use crate::reaper::Exit;
use crate::signal;
use crate::stdio::{Input, Streams};
use crate::terminal::resize;

/// A process, from the time it has a pid.
pub struct Process {
    pid: Pid,
    exit: watch::Sender<Option<Exit>>,
    input: Mutex<Option<Input>>,
    terminal: Mutex<Option<OwnedFd>>,
}

impl Process {
    /// The process `pid`, which has not been reaped.
    pub fn new(pid: Pid) -> Self {
        Self {
            pid,
            exit: watch::Sender::new(None),
            input: Mutex::default(),
            terminal: Mutex::default(),
        }
    }

    /// Copies its streams from now on; `terminal` is the master of its terminal, where it has one.
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

    /// As the guest numbers it.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The same, for calls of the system.
    pub fn raw_pid(&self) -> Pid {
        self.pid
    }

    /// Waits until it has ended.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        loop {
            if let Some(exit) = *exit.borrow_and_update() {
                return exit;
            }
            // The sender is in `self`: this ends by an exit only.
            let _ = exit.changed().await;
        }
    }

    /// Sends `signal` to it. Its pid is its own until the reaper has told of its end.
    pub fn kill(&self, signal: i32) -> Result<(), Error> {
        if self.exit.borrow().is_some() {
            return Err(Error::ProcessFinished);
        }
        signal::send(self.pid, signal).map_err(Error::system("sending a signal"))
    }

    /// No more standard input after what has arrived. A terminal has no end but its own.
    pub fn close_stdin(&self) {
        if let Some(input) = &*lock(&self.input) {
            input.close();
        }
    }

    /// Sets the size of its terminal, characters.
    pub fn resize(&self, width: u32, height: u32) -> Result<(), Error> {
        let characters = |number: u32| {
            u16::try_from(number).map_err(|_| Error::BadRequest {
                what: format!("a terminal {number} characters wide or high"),
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

    /// The reaper's event.
    pub fn ended(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
        if let Some(input) = lock(&self.input).take() {
            input.abort();
        }
        // What is left of its output is copied from a descriptor of its own.
        drop(lock(&self.terminal).take());
    }
}
