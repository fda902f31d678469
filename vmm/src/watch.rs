//! What the main thread does while the guest runs: waits for the guest's end, for the shim, and, by hand, for keys.

use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd};

use nacre_protocol::control::{Error as ChannelError, Outcome};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::control::{Control, Error};
use crate::machine::Machine;

/// Why the VMM ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest did.
    Guest(Outcome),
    /// The shim is gone, or speaks another language: no shim, no VM.
    Shim(String),
}

/// Waits for the end of `machine`, answering `control` and passing standard input on where `keys` says so.
///
/// # Errors
/// Where waiting itself fails.
pub fn watch(machine: &Machine, control: Option<&Control>, keys: bool) -> Result<End, Errno> {
    let stdin = std::io::stdin();
    let mut keys = keys;
    loop {
        // A descriptor with a negative number is left out by poll; absent ones are left out here.
        let ending = machine.ending().as_fd();
        let sources: [Option<BorrowedFd<'_>>; 3] = [
            Some(ending),
            control.map(|control| control.as_fd()),
            keys.then(|| stdin.as_fd()),
        ];
        let mut fds: Vec<PollFd<'_>> = sources
            .iter()
            .flatten()
            .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        let ready = |fd: BorrowedFd<'_>| {
            use std::os::fd::AsRawFd as _;
            fds.iter()
                .any(|polled| polled.as_fd().as_raw_fd() == fd.as_raw_fd() && polled.any() == Some(true))
        };
        let typed = keys && ready(stdin.as_fd());
        let asked = control.filter(|control| ready(control.as_fd()));
        if let Some(outcome) = machine.ending().outcome() {
            machine.finish_console();
            return Ok(End::Guest(outcome));
        }
        match asked.map(|control| control.answer(machine)) {
            None | Some(Ok(())) => {}
            Some(Err(Error::Channel(ChannelError::Closed))) => return Ok(End::Shim("it is gone".to_owned())),
            Some(Err(error)) => return Ok(End::Shim(error.to_string())),
        }
        if typed {
            keys = pass_keys(machine);
        }
    }
}

/// Passes what was typed to the guest; false at the end of input.
fn pass_keys(machine: &Machine) -> bool {
    let mut buffer = [0; 16];
    let room = machine.input().room().min(buffer.len()).max(1);
    let part = buffer.get_mut(..room).unwrap_or_default();
    match std::io::stdin().lock().read(part) {
        Ok(0) | Err(_) => false,
        Ok(count) => {
            machine.input().type_in(part.get(..count).unwrap_or_default());
            true
        }
    }
}
