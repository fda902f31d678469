//! The Unix sockets of Firecracker and Cloud Hypervisor, in a directory of their own: one for each port of the host
//! that a guest dials over vsock, and one for the VMM's API, which is HTTP.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nacre_protocol::vsock::AGENT_PORT;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::Value;
use tempfile::TempDir;

use super::http::request;
use super::running::Running;

/// How long an answer of the API may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// The directory of a peer, with its sockets and whatever else belongs to its guests.
pub struct Sockets {
    directory: TempDir,
    /// The host's end of the agent's port.
    agent: UnixListener,
}

impl Sockets {
    /// Listens at the agent's port.
    ///
    /// # Errors
    /// If the directory or the socket can't be made.
    pub fn create() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let agent = directory.path().join(format!("vsock_{AGENT_PORT}"));
        Ok(Self {
            agent: UnixListener::bind(agent)?,
            directory,
        })
    }

    /// The path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The socket of a guest's vsock device; those of its ports have names that begin with this one.
    pub fn vsock(&self) -> PathBuf {
        self.path("vsock")
    }

    /// The socket of the API.
    pub fn api(&self) -> PathBuf {
        self.path("api")
    }

    /// A command that executes `program`, whose output goes to the log.
    ///
    /// # Errors
    /// If there is no log.
    pub fn command(&self, program: &Path) -> Result<Command> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    fn log(&self) -> PathBuf {
        self.path("log")
    }

    /// Executes `command` without the sockets of the VMM before, which are in its way.
    ///
    /// # Errors
    /// As [`Running::start`].
    pub fn start(&self, command: Command) -> Result<Running> {
        for socket in [self.vsock(), self.api()] {
            match fs::remove_file(socket) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Running::start(command, &self.log())
    }

    /// Executes `command`, a VMM without a guest, and connects to its API as soon as it has one.
    ///
    /// # Errors
    /// If it has none in time.
    pub fn start_with_api(&self, command: Command) -> Result<(Running, UnixStream)> {
        let mut running = self.start(command)?;
        let created = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        created.add_watch(self.directory.path(), AddWatchFlags::IN_CREATE)?;
        while !self.api().exists() {
            running.wait_readable(&created).context("no API")?;
            created.read_events()?;
        }
        let stream = self.connect()?;
        Ok((running, stream))
    }

    /// Sends a request to the API of a VMM that has one, and waits for its answer.
    ///
    /// # Errors
    /// As [`request`].
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<()> {
        request(self.connect()?, method, path, body)
    }

    /// A connection to the API.
    fn connect(&self) -> Result<UnixStream> {
        let until = Instant::now() + DEADLINE;
        loop {
            match UnixStream::connect(self.api()) {
                // It has the name, and listens at once.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused && Instant::now() < until => {
                    std::thread::yield_now();
                }
                stream => {
                    let stream = stream.context("connecting to the API")?;
                    stream.set_read_timeout(Some(DEADLINE))?;
                    return Ok(stream);
                }
            }
        }
    }

    /// The connection of an agent that is prepared, as [`Running::accept_prepared`].
    ///
    /// # Errors
    /// See there.
    pub fn accept_prepared(&self, running: &mut Running) -> Result<File> {
        running.accept_prepared(&self.agent)
    }

    /// Executes `command`, and returns the milliseconds from then until the agent connects.
    ///
    /// # Errors
    /// As [`Running::start`] and [`Running::accept`].
    pub fn time(&self, command: Command) -> Result<f64> {
        let started = Instant::now();
        let mut running = self.start(command)?;
        self.until_connected(started, &mut running)
    }

    /// Waits until the agent connects, and returns the milliseconds since `started`.
    ///
    /// # Errors
    /// As [`Running::accept`].
    pub fn until_connected(&self, started: Instant, running: &mut Running) -> Result<f64> {
        running.accept(&self.agent)?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    }
}
