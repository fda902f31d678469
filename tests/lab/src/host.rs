//! The host's half of a run in the VM: one queue of events, fed by a thread per stream, and one owner that decides.
//!
//! powered on → (job) → started → exited → all output copied → done; at any time: no beat for a minute, QEMU ended, a
//! signal, a caller that reads no more.

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

/// How long a VM that is ending may take to say its last.
const LAST_WORDS: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum Event {
    Inside(ToHost),
    /// The control port failed.
    ControlLost(io::Error),
    /// So many bytes of a stream (0 is standard output, 1 standard error) have been written in all.
    Copied(usize, u64),
    /// The caller reads a stream no more.
    Unread,
    /// A stream of the caller fails.
    StreamFailed(io::Error),
    QemuEnded,
    Signal(Signal),
}

/// Runs the command in a VM; gives its exit code.
pub fn run(arguments: &Arguments, checkout: &Path) -> Result<u8> {
    let mut job = parts::job(arguments, checkout)?;
    let boot = Boot::prepare(checkout)?;
    job.modules = Some(boot.modules.clone());
    job.terminal = terminal::wanted().then(terminal::size).transpose()?;
    std::fs::create_dir_all(&job.target)?;
    let (sender, events) = channel();
    // Before any thread: all of them leave these signals to the one that reads them.
    watch_signals(sender.clone())?;
    let mut machine = Machine::start(arguments, &boot, &job.target)?;
    let raw = job.terminal.is_some().then(Raw::enter).transpose()?;
    let tail = Tail::default();
    start_threads(&mut machine, &sender, &tail, arguments.verbose)?;
    // A VM that has not said a word for this long has locked up: it does so under emulation.
    let patience = Duration::from_secs(arguments.patience);
    wire::send(&machine.control, &ToInside::Job(Box::new(job))).context("sending the job")?;
    let outcome = attend(&mut machine, patience, &events, &tail);
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

/// Waits until the console of a VM that is ending has been read to its end: it says why. Not for ever.
fn await_console(events: &Receiver<Event>) {
    let until = Instant::now() + LAST_WORDS;
    while let Ok(event) = events.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if matches!(event, Event::QemuEnded) {
            return;
        }
    }
}

/// The owner: takes events until there is an exit code or a reason why there is none.
fn attend(machine: &mut Machine, patience: Duration, events: &Receiver<Event>, tail: &Tail) -> Result<u8> {
    let mut beat = Instant::now();
    let mut phase = "starting up";
    let mut copied = [0; 2];
    let mut exit = None;
    loop {
        if let Some((code, wanted)) = exit
            && copied == wanted
        {
            return Ok(code);
        }
        let left = patience.saturating_sub(beat.elapsed());
        match events.recv_timeout(left) {
            Ok(Event::Inside(ToHost::Beat)) => beat = Instant::now(),
            Ok(Event::Inside(ToHost::Started)) => phase = "the command ran",
            Ok(Event::Inside(ToHost::Exit { code, stdout, stderr })) => exit = Some((code, [stdout, stderr])),
            Ok(Event::Inside(ToHost::Failed(reason))) => {
                bail!("the VM could not be set up: {reason}")
            }
            Ok(Event::Copied(index, total)) => copied[index] = total,
            Ok(Event::Unread) => return Ok(128 + 13),
            Ok(Event::StreamFailed(error)) => return Err(error).context("passing standard streams"),
            Ok(Event::Signal(Signal::SIGWINCH)) => {
                let (rows, columns) = terminal::size()?;
                wire::send(&machine.control, &ToInside::Window(rows, columns))?;
            }
            Ok(Event::Signal(signal)) => {
                eprintln!("lab: ended by {signal} while {phase}\r");
                return Ok(u8::try_from(128 + signal as i32)?);
            }
            Ok(Event::ControlLost(error)) => {
                await_console(events);
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
                "the VM has been silent for {} s while {phase}, killed; this is the lab's failure, not the command's; {}",
                patience.as_secs(),
                tail.text()
            ),
            Err(RecvTimeoutError::Disconnected) => bail!("all threads have ended"),
        }
    }
}

/// The receiver is gone only when the run is over.
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
            Ok(Some(message)) => send(to, Event::Inside(message)),
            // QEMU has closed it; its end is told by the console's.
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
        // The port fails only when the VM is gone, which is told elsewhere.
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
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return send(to, Event::Unread),
            Err(error) => return send(to, Event::StreamFailed(error)),
        }
        total += length as u64;
        send(to, Event::Copied(index, total));
    }
}
