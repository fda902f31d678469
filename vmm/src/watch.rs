//! What the main thread does while the guest runs: waits for the guest's end, for the shim, and, by hand, for keys.

use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd};

use nacre_protocol::control::{Error as ChannelError, Outcome};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::control::{Control, Error};
use crate::machine::Machine;

/// Why the VMM ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest did.
    Guest(Outcome),
    /// The shim is gone, or speaks another language: no shim, no VM.
    Shim(String),
    /// [`Wait::stop`] was written.
    Stopped,
}

/// What to wait for beside the guest's end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wait<'a> {
    /// The shim's questions.
    pub control: Option<&'a Control>,
    /// Standard input, which goes to the guest's console.
    pub keys: bool,
    /// Ends the VM when it is written.
    pub stop: Option<&'a EventFd>,
}

/// What has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Ending,
    Control,
    Stop,
    Keys,
}

/// Waits for the end of `machine`, and does meanwhile what `wait` says.
///
/// # Errors
/// Where waiting itself fails.
pub fn watch(machine: &Machine, mut wait: Wait<'_>) -> Result<End, Errno> {
    loop {
        for source in next(machine, &wait)? {
            match source {
                Source::Ending => {
                    if let Some(outcome) = machine.ending().outcome() {
                        machine.finish_console();
                        return Ok(End::Guest(outcome));
                    }
                }
                Source::Control => match wait.control.map(|control| control.answer(machine)) {
                    None | Some(Ok(())) => {}
                    Some(Err(Error::Channel(ChannelError::Closed))) => {
                        return Ok(End::Shim("it is gone".to_owned()));
                    }
                    Some(Err(error)) => return Ok(End::Shim(error.to_string())),
                },
                Source::Stop => return Ok(End::Stopped),
                Source::Keys => wait.keys = pass_keys(machine),
            }
        }
    }
}

/// Waits until something comes.
fn next(machine: &Machine, wait: &Wait<'_>) -> Result<Vec<Source>, Errno> {
    let stdin = std::io::stdin();
    let sources: [(Source, Option<BorrowedFd<'_>>); 4] = [
        (Source::Ending, Some(machine.ending().as_fd())),
        (Source::Control, wait.control.map(|control| control.as_fd())),
        (Source::Stop, wait.stop.map(crate::machine::ending::borrow)),
        (Source::Keys, wait.keys.then(|| stdin.as_fd())),
    ];
    let (names, mut fds): (Vec<Source>, Vec<PollFd<'_>>) = sources
        .into_iter()
        .filter_map(|(source, fd)| Some((source, PollFd::new(fd?, PollFlags::POLLIN))))
        .unzip();
    match poll(&mut fds, PollTimeout::NONE) {
        Err(Errno::EINTR) => return Ok(Vec::new()),
        result => result?,
    };
    let came = names
        .into_iter()
        .zip(&fds)
        .filter(|(_, fd)| fd.any() == Some(true));
    Ok(came.map(|(source, _)| source).collect())
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
