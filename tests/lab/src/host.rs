//! Runs the command in a VM. A thread per stream sends events into one queue, and `run_to_exit` handles them:
//!
//! VM started → job sent → command started → command exited → all output copied → exit code.
//!
//! The run also ends if heartbeats stop, QEMU exits, a signal arrives, or the caller closes its end of a
//! stream.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

use crate::console::Tail;
use crate::machine::{Boot, Machine};
use crate::terminal::{self, Raw};
use crate::wire::{self, ToHost, ToInside};
use crate::{Arguments, parts};

/// How long to read the console of a VM that is ending.
const CONSOLE_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum Event {
    /// A message from the VM.
    Message(ToHost),
    /// Reading the control port failed.
    ControlLost(io::Error),
    /// Stream (0: standard output, 1: standard error) and the total of its bytes that the caller has been
    /// given.
    Copied(usize, u64),
    /// The caller has closed its end of standard output or error.
    CallerClosed,
    /// Reading or writing one of the caller's streams failed.
    StreamFailed(io::Error),
    /// The end of the VM's console.
    QemuEnded,
    /// A signal for the driver.
    Signal(Signal),
}

/// Runs the command in a VM and returns its exit code.
pub fn run(arguments: &Arguments, checkout: &Path) -> Result<u8> {
    let mut job = parts::job(arguments, checkout)?;
    let boot = Boot::prepare(checkout)?;
    job.modules = Some(boot.modules.clone());
    job.terminal = terminal::wanted().then(terminal::size).transpose()?;
    std::fs::create_dir_all(&job.target)?;
    let (sender, events) = channel();
    // Before any thread starts: threads inherit the signal mask, and only the signalfd may receive these
    // signals.
    watch_signals(sender.clone())?;
    let mut machine = Machine::start(arguments, &boot, &job.target)?;
    let raw = job.terminal.is_some().then(Raw::enter).transpose()?;
    let tail = Tail::default();
    start_threads(&mut machine, &sender, &tail, arguments.verbose)?;
    let patience = Duration::from_secs(arguments.patience);
    wire::send(&machine.control, &ToInside::Job(Box::new(job))).context("sending the job")?;
    let outcome = run_to_exit(&mut machine, patience, &events, &tail);
    drop(raw);
    outcome
}

fn start_threads(machine: &mut Machine, sender: &Sender<Event>, tail: &Tail, verbose: bool) -> Result<()> {
    let (console, errors) = machine.take_output()?;
    let (kept, end) = (tail.clone(), sender.clone());
    thread::spawn(move || {
        if let Err(error) = kept.read(console, verbose) {
            eprintln!("lab: reading the console: {error}\r");
        }
        send(&end, Event::QemuEnded);
    });
    let kept = tail.clone();
    thread::spawn(move || kept.read(errors, verbose));
    let control = BufReader::new(machine.control.try_clone()?);
    let to = sender.clone();
    thread::spawn(move || read_control(control, &to));
    let stdin = machine.stdin.try_clone()?;
    let to = sender.clone();
    thread::spawn(move || pass_stdin(&stdin, &to));
    for (index, stream) in [&machine.stdout, &machine.stderr].into_iter().enumerate() {
        let (stream, to) = (stream.try_clone()?, sender.clone());
        thread::spawn(move || copy_out(index, stream, &to));
    }
    Ok(())
}

/// Waits until the console of a VM that is ending has been read to its end, because it shows the reason.
/// Bounded.
fn wait_for_console(events: &Receiver<Event>) {
    let until = Instant::now() + CONSOLE_DEADLINE;
    while let Ok(event) = events.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if matches!(event, Event::QemuEnded) {
            return;
        }
    }
}

/// Handles events until the command has exited and its output is copied, or until the lab fails. A VM without
/// a heartbeat for `patience` has locked up, which happens under emulation.
fn run_to_exit(
    machine: &mut Machine,
    patience: Duration,
    events: &Receiver<Event>,
    tail: &Tail,
) -> Result<u8> {
    let mut last_heartbeat = Instant::now();
    let mut phase = "the VM started";
    let mut copied = [0; 2];
    let mut exit = None;
    loop {
        if let Some((code, wanted)) = exit
            && copied == wanted
        {
            return Ok(code);
        }
        let left = patience.saturating_sub(last_heartbeat.elapsed());
        match events.recv_timeout(left) {
            Ok(Event::Message(ToHost::Heartbeat)) => last_heartbeat = Instant::now(),
            Ok(Event::Message(ToHost::Started)) => phase = "the command ran",
            Ok(Event::Message(ToHost::Exit { code, stdout, stderr })) => {
                exit = Some((code, [stdout, stderr]))
            }
            Ok(Event::Message(ToHost::Failed(reason))) => {
                bail!("setting up the VM failed: {reason}")
            }
            Ok(Event::Copied(index, total)) => copied[index] = total,
            Ok(Event::CallerClosed) => return Ok(128 + 13),
            Ok(Event::StreamFailed(error)) => return Err(error).context("copying the standard streams"),
            Ok(Event::Signal(Signal::SIGWINCH)) => {
                let (rows, columns) = terminal::size()?;
                wire::send(&machine.control, &ToInside::Window(rows, columns))?;
            }
            Ok(Event::Signal(signal)) => {
                eprintln!("lab: stopped by {signal} while {phase}\r");
                return Ok(u8::try_from(128 + signal as i32)?);
            }
            Ok(Event::ControlLost(error)) => {
                wait_for_console(events);
                bail!(
                    "lost the VM's control port ({error}) while {phase}; {}",
                    tail.text()
                )
            }
            Ok(Event::QemuEnded) => {
                bail!(
                    "the VM ended ({}) while {phase}; {}",
                    machine.ended(),
                    tail.text()
                )
            }
            Err(RecvTimeoutError::Timeout) => bail!(
                "no heartbeat from the VM for {} s while {phase}, so it was killed; this is a failure of the lab, not of the command; {}",
                patience.as_secs(),
                tail.text()
            ),
            Err(RecvTimeoutError::Disconnected) => bail!("all threads of the driver have ended"),
        }
    }
}

/// Sends an event. This fails only after the run has ended, and then nobody needs the event.
fn send(to: &Sender<Event>, event: Event) {
    let _ = to.send(event);
}

fn watch_signals(sender: Sender<Event>) -> Result<()> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGWINCH,
    ] {
        set.add(signal);
    }
    set.thread_block()?;
    let signals = SignalFd::new(&set)?;
    thread::spawn(move || {
        while let Ok(Some(info)) = signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo)
                .ok()
                .and_then(|number| Signal::try_from(number).ok());
            if let Some(signal) = signal {
                send(&sender, Event::Signal(signal));
            }
        }
    });
    Ok(())
}

fn read_control(mut from: BufReader<UnixStream>, to: &Sender<Event>) {
    loop {
        match wire::receive(&mut from) {
            Ok(Some(message)) => send(to, Event::Message(message)),
            // QEMU has closed the port because it exits; the end of the console is reported as QemuEnded.
            Ok(None) => return,
            Err(error) => return send(to, Event::ControlLost(error)),
        }
    }
}

fn pass_stdin(port: &UnixStream, to: &Sender<Event>) {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length = match io::stdin().lock().read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return send(to, Event::StreamFailed(error)),
        };
        // The port fails only if QEMU has exited, which the console's thread reports.
        if wire::send_piece(port, &buffer[..length]).is_err() || length == 0 {
            return;
        }
    }
}

fn copy_out(index: usize, mut port: UnixStream, to: &Sender<Event>) {
    let file = match index {
        0 => rustix::io::dup(rustix::stdio::stdout()),
        _ => rustix::io::dup(rustix::stdio::stderr()),
    };
    let mut file = match file {
        Ok(fd) => File::from(fd),
        Err(error) => return send(to, Event::StreamFailed(error.into())),
    };
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let length = match port.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        match file.write_all(&buffer[..length]) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return send(to, Event::CallerClosed),
            Err(error) => return send(to, Event::StreamFailed(error)),
        }
        total += length as u64;
        send(to, Event::Copied(index, total));
    }
}
