//! The main thread's loop while the guest runs: it waits for the end of the VM, for messages from the shim
//! and, in standalone mode, for standard input: keys or commands. Called after [`Machine::run`]; it never
//! runs guest code or device code.

use std::io::BufRead as _;
use std::os::fd::{AsFd, BorrowedFd};

use nacre_protocol::control::{Error as ChannelError, Outcome};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::commands::{Command, Lines};
use crate::control::{Control, Error};
use crate::devices::serial::SerialInput;
use crate::machine::Machine;

/// Why the loop ended; the process then exits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The VM ended: the guest powered off, reset or panicked, or a part of the VMM failed.
    VmExited(Outcome),
    /// The shim closed the control socket or sent an invalid message; the VM does not run without a shim.
    ShimGone(String),
    /// [`Inputs::stop_request`] is readable.
    Requested,
}

/// What the loop waits for besides the end of the VM.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inputs<'a> {
    /// Messages from the shim.
    pub control: Option<&'a Control>,
    /// What standard input is for.
    pub stdin: StandardInput,
    /// Ends the loop when it is readable; the loop does not read it.
    pub stop_request: Option<BorrowedFd<'a>>,
}

/// What the loop does with standard input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StandardInput {
    /// Does not read it.
    #[default]
    Unused,
    /// Forwards it to the guest's serial port.
    Console,
    /// Carries out the commands in it, one per line.
    Commands,
}

/// A descriptor that became readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    VmExit,
    Control,
    StopRequest,
    Stdin,
}

/// Handles `inputs` until `machine` ends or there is another reason to stop.
///
/// # Errors
/// The errno of poll(2).
pub fn run(machine: &mut Machine, mut inputs: Inputs<'_>) -> Result<StopReason, Errno> {
    let mut lines = Lines::default();
    loop {
        for source in wait(machine, &inputs)? {
            match source {
                Source::VmExit => {
                    if let Some(outcome) = machine.vm_exit().outcome() {
                        machine.flush_console();
                        return Ok(StopReason::VmExited(outcome));
                    }
                }
                Source::Control => match inputs.control.map(|control| control.handle_message(machine)) {
                    None | Some(Ok(())) => {}
                    Some(Err(Error::Channel(ChannelError::Closed))) => {
                        return Ok(StopReason::ShimGone("it closed the control socket".to_owned()));
                    }
                    Some(Err(error)) => return Ok(StopReason::ShimGone(error.to_string())),
                },
                Source::StopRequest => return Ok(StopReason::Requested),
                Source::Stdin => {
                    let is_open = match inputs.stdin {
                        StandardInput::Unused => false,
                        StandardInput::Console => forward(&std::io::stdin(), machine.serial_input()),
                        StandardInput::Commands => run_commands(machine, &mut lines),
                    };
                    if !is_open {
                        inputs.stdin = StandardInput::Unused;
                    }
                }
            }
        }
    }
}

/// Blocks until a descriptor is readable; returns the sources that are.
fn wait(machine: &Machine, inputs: &Inputs<'_>) -> Result<Vec<Source>, Errno> {
    let stdin = std::io::stdin();
    let candidates: [(Source, Option<BorrowedFd<'_>>); 4] = [
        (Source::VmExit, Some(machine.vm_exit().as_fd())),
        (Source::Control, inputs.control.map(|control| control.as_fd())),
        (Source::StopRequest, inputs.stop_request),
        (
            Source::Stdin,
            (inputs.stdin != StandardInput::Unused).then(|| stdin.as_fd()),
        ),
    ];
    let (sources, mut fds): (Vec<Source>, Vec<PollFd<'_>>) = candidates
        .into_iter()
        .filter_map(|(source, fd)| Some((source, PollFd::new(fd?, PollFlags::POLLIN))))
        .unzip();
    match poll(&mut fds, PollTimeout::NONE) {
        Err(Errno::EINTR) => return Ok(Vec::new()),
        result => result?,
    };
    let ready = sources
        .into_iter()
        .zip(&fds)
        .filter(|(_, fd)| fd.any() == Some(true));
    Ok(ready.map(|(source, _)| source).collect())
}

/// Forwards bytes that `input` has to the guest, as many as `serial` has space for; false at the end of input.
/// Reads the descriptor itself: [`std::io::Stdin`] would buffer the rest, and poll(2) would not report it.
fn forward(input: &impl AsFd, serial: &SerialInput) -> bool {
    let mut buffer = [0; 16];
    let space = serial.free_space().min(buffer.len()).max(1);
    let part = buffer.get_mut(..space).unwrap_or_default();
    match nix::unistd::read(input, part) {
        Err(Errno::EINTR | Errno::EAGAIN) => true,
        Ok(0) | Err(_) => false,
        Ok(count) => {
            serial.enqueue(part.get(..count).unwrap_or_default());
            true
        }
    }
}

/// Carries out the commands that standard input has, and reports each on standard error; false at the end of
/// input.
fn run_commands(machine: &mut Machine, lines: &mut Lines) -> bool {
    let mut stdin = std::io::stdin().lock();
    let Ok(bytes) = stdin.fill_buf() else {
        return false;
    };
    let length = bytes.len();
    let commands = lines.push(bytes);
    stdin.consume(length);
    for command in commands {
        match command {
            Err(unknown) => eprintln!("nacre-vmm: {unknown}"),
            Ok(Command::RenewGenerationId) => match machine.renew_generation_id() {
                Ok(()) => eprintln!("nacre-vmm: the VM has a new generation id"),
                Err(error) => eprintln!("nacre-vmm: {error}"),
            },
            // Once the guest has it, the device reports that.
            Ok(Command::PlugMemory { mib }) => {
                if let Err(error) = machine.plug_memory(mib) {
                    eprintln!("nacre-vmm: {error}");
                }
            }
        }
    }
    length > 0
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::Arc;

    use super::*;
    use crate::bus::BusDevice as _;
    use crate::config::ConsoleOutput;
    use crate::devices::console::Console;
    use crate::devices::io_apic::IoApic;
    use crate::devices::serial::{self, SerialInterrupt};

    #[test]
    fn pasted_text_is_forwarded_as_long_as_poll_reports_it() {
        let io_apic = IoApic::new(0..1, Arc::new(|_| Ok(())));
        let console = Console::new(None, ConsoleOutput::RingOnly);
        let (mut port, input) = serial::create(SerialInterrupt(io_apic.pin(0)), console);
        let (keyboard, mut terminal) = std::io::pipe().unwrap();
        let pasted: Vec<u8> = (b' '..b' ' + 50).collect();
        terminal.write_all(&pasted).unwrap();
        let is_readable = || {
            let mut fds = [PollFd::new(keyboard.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
        };
        while is_readable() {
            assert!(forward(&keyboard, &input));
        }
        let mut received = vec![0; pasted.len()];
        for byte in &mut received {
            port.read(0, std::slice::from_mut(byte));
        }
        assert_eq!(received, pasted);
        drop(terminal);
        assert!(!forward(&keyboard, &input), "the end of input");
    }
}
