//! The main thread's loop while the guest runs: it waits for the end of the VM, for messages from the shim
//! and, in standalone mode, for standard input: keys or commands. Called after [`Machine::run`]; it never
//! runs guest code or device code.

use std::cell::RefCell;
use std::io::BufRead as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nacre_protocol::control::{Error as ChannelError, Outcome};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::commands::{Command, Lines};
use crate::control::{Control, Error};
use crate::devices::serial::SerialInput;
use crate::machine::{DeviceBuilder, Machine, PlugError};
use crate::virtio::mem::Sizes;

/// Why the loop ended; the process then exits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The VM ended: the guest powered off, reset or panicked, or a part of the VMM failed.
    VmExited(Outcome),
    /// The shim closed the control socket or sent an invalid message; the VM does not run without a shim.
    ShimGone(String),
    /// [`Inputs::stop_request`] is readable, or [`Inputs::deadline`] has passed.
    Requested,
}

/// What the loop waits for besides the end of the VM.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inputs<'a> {
    /// Messages from the shim.
    pub control: Option<&'a Control>,
    /// What standard input is for.
    pub stdin: StandardInput,
    /// Devices that commands add.
    pub late_devices: Option<&'a LateDevices>,
    /// Ends the loop when it is readable; the loop does not read it.
    pub stop_request: Option<BorrowedFd<'a>>,
    /// Ends the loop.
    pub deadline: Option<Instant>,
}

/// Devices that the operator adds while the guest runs, by [`Command::AttachDevice`].
#[derive(Default)]
pub struct LateDevices {
    /// Not added yet; the last one is next.
    pub prepared: RefCell<Vec<DeviceBuilder>>,
    /// The slots of those that were added.
    pub slots: RefCell<Vec<u8>>,
}

impl std::fmt::Debug for LateDevices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LateDevices({:?})", self.slots)
    }
}

impl LateDevices {
    fn attach(&self, machine: &mut Machine) -> Result<String, String> {
        let device = self.prepared.borrow_mut().pop().ok_or("no device was prepared")?;
        let slot = machine.attach(device).map_err(|error| error.to_string())?;
        self.slots.borrow_mut().push(slot);
        Ok(format!("added a device in PCI slot {slot}"))
    }

    fn detach(&self, machine: &mut Machine) -> Result<String, String> {
        let slot = self.slots.borrow_mut().pop().ok_or("no device was added")?;
        machine.detach(slot).map_err(|error| error.to_string())?;
        Ok(format!("removed the device in PCI slot {slot}"))
    }
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
    MemoryTaken,
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
                Source::MemoryTaken => machine.plug_on(),
                Source::StopRequest => return Ok(StopReason::Requested),
                Source::Stdin => {
                    let is_open = match inputs.stdin {
                        StandardInput::Unused => false,
                        StandardInput::Console => forward(&std::io::stdin(), machine.serial_input()),
                        StandardInput::Commands => run_commands(machine, &mut lines, inputs.late_devices),
                    };
                    if !is_open {
                        inputs.stdin = StandardInput::Unused;
                    }
                }
            }
        }
    }
}

/// Blocks until a descriptor is readable, or devices have not taken memory in time; returns the sources that are.
fn wait(machine: &Machine, inputs: &Inputs<'_>) -> Result<Vec<Source>, Errno> {
    let stdin = std::io::stdin();
    let candidates: [(Source, Option<BorrowedFd<'_>>); 5] = [
        (Source::VmExit, Some(machine.vm_exit().as_fd())),
        (Source::MemoryTaken, Some(machine.memory_taken())),
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
    let deadlines = [machine.plug_deadline(), inputs.deadline];
    let timeout = deadlines
        .into_iter()
        .flatten()
        .min()
        .map_or(PollTimeout::NONE, |deadline| {
            // One more, since it is rounded down.
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
    match poll(&mut fds, timeout) {
        Err(Errno::EINTR) => return Ok(Vec::new()),
        Ok(0) if inputs.deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
            return Ok(vec![Source::StopRequest]);
        }
        Ok(0) => return Ok(vec![Source::MemoryTaken]),
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
fn run_commands(machine: &mut Machine, lines: &mut Lines, late: Option<&LateDevices>) -> bool {
    let mut stdin = std::io::stdin().lock();
    let Ok(bytes) = stdin.fill_buf() else {
        return false;
    };
    let length = bytes.len();
    let commands = lines.push(bytes);
    stdin.consume(length);
    let late = late.ok_or("no device was prepared".to_owned());
    for command in commands {
        let result = match command {
            Err(unknown) => Err(unknown.to_string()),
            Ok(Command::RenewGenerationId) => machine
                .renew_generation_id()
                .map(|()| Some("the VM has a new generation id".to_owned()))
                .map_err(|error| error.to_string()),
            Ok(Command::Memory) => machine
                .plugged_memory()
                .map(|Sizes { requested, plugged }| {
                    let (requested, plugged) = (requested >> 20, plugged >> 20);
                    Some(format!("{plugged} MiB of {requested} requested are plugged in"))
                })
                .map_err(|error| error.to_string()),
            // Once the guest has it, the device reports that.
            Ok(Command::PlugMemory { mib }) => {
                machine.plug_memory(mib, Box::new(report_failure));
                Ok(None)
            }
            Ok(Command::AttachCommon) => machine
                .attach_common()
                .map(|()| Some("added the devices that every VM has".to_owned()))
                .map_err(|error| error.to_string()),
            Ok(Command::AttachDevice) => late.clone().and_then(|late| late.attach(machine)).map(Some),
            Ok(Command::DetachDevice) => late.clone().and_then(|late| late.detach(machine)).map(Some),
            Ok(Command::Requests) => Ok(Some(requests())),
        };
        if let Some(text) = result.unwrap_or_else(Some) {
            eprintln!("nacre-vmm: {text}");
        }
    }
    length > 0
}

/// What virtio-fs has served, as `requests: Lookup=3 Read=1`.
fn requests() -> String {
    let counts = crate::virtio::fs::counts().into_iter();
    counts.fold("requests:".to_owned(), |text, (kind, count)| {
        format!("{text} {kind}={count}")
    })
}

fn report_failure(result: Result<(), PlugError>) {
    if let Err(error) = result {
        eprintln!("nacre-vmm: {error}");
    }
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
