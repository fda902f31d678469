//! PID 1 of the VM: reads its job from the control port, sends heartbeats, runs the command and copies its
//! streams.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::event::{EventfdFlags, eventfd};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::{command, containerd, environment, mounts, run_quietly, template};
use crate::wire::{self, Job, ToHost, ToInside};

/// Interval of heartbeats; the host kills a VM that has sent none for a minute.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// The control port, shared with the heartbeat thread.
#[derive(Clone)]
struct Control(Arc<Mutex<File>>);

impl Control {
    fn send(&self, message: &ToHost) {
        let file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = wire::send(&*file, message) {
            eprintln!("lab: the control port: {error}");
        }
    }
}

/// Never returns: the host ends the VM. Without a control port it exits, which panics the kernel and so ends
/// QEMU.
pub fn main() -> ! {
    let opened = port(wire::PORT_CONTROL).and_then(|write| Ok((write.try_clone()?, write)));
    let (read, write) = match opened {
        Ok(ports) => ports,
        Err(error) => {
            eprintln!("lab: {error:#}");
            std::process::exit(1);
        }
    };
    let control = Control(Arc::new(Mutex::new(write)));
    control.send(&ToHost::Heartbeat);
    let heartbeats = control.clone();
    let (_never, stop) = channel::<()>();
    thread::spawn(move || {
        while stop.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
            heartbeats.send(&ToHost::Heartbeat);
        }
    });
    match run(BufReader::new(read), &control) {
        Ok(exit) => control.send(&exit),
        Err(error) => control.send(&ToHost::Failed(format!("{error:#}"))),
    }
    loop {
        thread::park();
    }
}

fn run(mut from: BufReader<File>, control: &Control) -> Result<ToHost> {
    let Some(ToInside::Job(job)) = wire::receive(&mut from).context("reading the job")? else {
        bail!("the control port was closed before the job arrived")
    };
    mounts::vm(&job)?;
    run_quietly("/bin/busybox", &["ifconfig", "lo", "up"])?;
    run_quietly("/bin/busybox", &["hostname", "nacre-lab"])?;
    let environment = environment(&job, "vm");
    let template = template::begin(&job, &environment);
    containerd::start(&job, &environment)?;
    template::finish(template);
    let exit = match job.terminal {
        Some(size) => with_terminal(&job, &environment, size, (from, control))?,
        None => with_pipes(&job, &environment, control)?,
    };
    containerd::keep_log(&job)?;
    Ok(exit)
}

/// Opens the virtio-serial port `name`. No udev runs here that would create links by name.
fn port(name: &str) -> Result<File> {
    for entry in fs::read_dir("/sys/class/virtio-ports").context("listing the virtio-serial ports")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|found| found.trim_end() == name) {
            let device = std::path::Path::new("/dev").join(entry.file_name());
            return OpenOptions::new()
                .read(true)
                .write(true)
                .open(&device)
                .with_context(|| format!("opening {}", device.display()));
        }
    }
    bail!("there is no virtio-serial port {name}")
}

fn with_pipes(job: &Job, environment: &[(OsString, OsString)], control: &Control) -> Result<ToHost> {
    let mut command = command::prepare(job, environment, false)?;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    control.send(&ToHost::Started);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let (code, text) = command::not_started(job, &error);
            port(wire::PORT_STDERR)?.write_all(text.as_bytes())?;
            return Ok(ToHost::Exit {
                code,
                stdout: 0,
                stderr: text.len() as u64,
            });
        }
    };
    let stdin = child.stdin.take().context("standard input")?;
    let stdout = OwnedFd::from(child.stdout.take().context("standard output")?);
    let stderr = OwnedFd::from(child.stderr.take().context("standard error")?);
    pass_stdin(OwnedFd::from(stdin))?;
    let (done, stdout) = copy(stdout, wire::PORT_STDOUT)?;
    let (done2, stderr) = copy(stderr, wire::PORT_STDERR)?;
    let code = command::wait_for(child.id())?;
    rustix::io::write(&done, &1u64.to_ne_bytes())?;
    rustix::io::write(&done2, &1u64.to_ne_bytes())?;
    let stdout = stdout
        .join()
        .map_err(|_| anyhow::anyhow!("copying standard output panicked"))??;
    let stderr = stderr
        .join()
        .map_err(|_| anyhow::anyhow!("copying standard error panicked"))??;
    Ok(ToHost::Exit { code, stdout, stderr })
}

fn with_terminal(
    job: &Job,
    environment: &[(OsString, OsString)],
    size: (u16, u16),
    (mut from, control): (BufReader<File>, &Control),
) -> Result<ToHost> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    resize(&master, size)?;
    let name = ptsname(&master, Vec::new())?;
    let terminal = OpenOptions::new().read(true).write(true).open(name.to_str()?)?;
    let mut command = command::prepare(job, environment, true)?;
    command
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal);
    control.send(&ToHost::Started);
    let child = command.spawn().context("starting setsid")?;
    // Close this process's copy of the terminal, so that it closes when the command exits.
    drop(command);
    pass_stdin(master.try_clone()?)?;
    let window = master.try_clone()?;
    thread::spawn(move || {
        while let Ok(Some(ToInside::Window(rows, columns))) = wire::receive(&mut from) {
            if let Err(error) = resize(&window, (rows, columns)) {
                eprintln!("lab: setting the terminal's size: {error}");
            }
        }
    });
    let (done, stdout) = copy(master, wire::PORT_STDOUT)?;
    let code = command::wait_for(child.id())?;
    rustix::io::write(&done, &1u64.to_ne_bytes())?;
    let stdout = stdout
        .join()
        .map_err(|_| anyhow::anyhow!("copying the terminal panicked"))??;
    Ok(ToHost::Exit {
        code,
        stdout,
        stderr: 0,
    })
}

fn resize(terminal: &OwnedFd, (ws_row, ws_col): (u16, u16)) -> std::io::Result<()> {
    Ok(tcsetwinsize(
        terminal,
        Winsize {
            ws_row,
            ws_col,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )?)
}

/// Copies the caller's standard input to `to` in a thread. After the command has closed it, the rest is read
/// and discarded.
fn pass_stdin(to: OwnedFd) -> Result<()> {
    let mut from = BufReader::new(port(wire::PORT_STDIN)?);
    thread::spawn(move || {
        let mut to = Some(File::from(to));
        while let Ok(piece) = wire::receive_piece(&mut from) {
            if piece.is_empty() {
                return;
            }
            if let Some(file) = &mut to
                && file.write_all(&piece).is_err()
            {
                to = None;
            }
        }
    });
    Ok(())
}

type Copying = thread::JoinHandle<Result<u64>>;

/// Copies `from` to a port in a thread, until its end. Once the returned eventfd is written, the thread also
/// stops when nothing is left to read: a background process may keep the stream open. The thread returns the
/// number of bytes.
fn copy(from: OwnedFd, port_name: &str) -> Result<(OwnedFd, Copying)> {
    let mut to = port(port_name)?;
    let done = eventfd(0, EventfdFlags::CLOEXEC)?;
    let ended = done.try_clone()?;
    let mut from = File::from(from);
    let copying = thread::spawn(move || {
        let mut total = 0;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let mut fds = [
                PollFd::new(from.as_fd(), PollFlags::POLLIN),
                PollFd::new(ended.as_fd(), PollFlags::POLLIN),
            ];
            poll(&mut fds, PollTimeout::NONE)?;
            let nothing_left = fds[0].any() != Some(true);
            if nothing_left {
                return Ok(total);
            }
            match from.read(&mut buffer) {
                Ok(0) => return Ok(total),
                Ok(length) => {
                    to.write_all(&buffer[..length])?;
                    total += length as u64;
                }
                // Nobody has the terminal open any more.
                Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => return Ok(total),
                Err(error) => return Err(error.into()),
            }
        }
    });
    Ok((done, copying))
}
