//! Firecracker as a peer. A boot has all in a configuration file and no API, a restore is a request to the API: the
//! shortest way of each. The agent's connection comes to a Unix socket, `SOCKET_PORT` beside that of the vsock device.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nacre_protocol::guest::TEMPLATE;
use nacre_protocol::vsock::{AGENT_PORT, GUEST_CID};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::request;
use super::running::Running;
use super::{Differences, Image, PARAMETERS, Vmm};

/// How long an answer of the API may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// What is not alike, for the rows' notes.
pub const DIFFERENCES: Differences = Differences {
    machine: "Firecracker with --enable-pci; it also has a PIC, a PIT and a keyboard controller; it has no jail, no \
        shared tree, and panic=0",
    restore: "by a request to its API, with the memory's file mapped, as nacre-vmm has it",
};

/// Firecracker, and a saved guest of its.
pub struct Firecracker {
    program: PathBuf,
    image: Image,
    /// The host's end of the agent's port.
    listener: UnixListener,
    directory: TempDir,
}

impl Firecracker {
    /// Boots a guest and saves it when its agent is ready.
    ///
    /// # Errors
    /// If `program` is not there, or the guest is not saved.
    pub fn save(program: &Path, image: &Image) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let agent = directory.path().join(format!("vsock_{AGENT_PORT}"));
        let this = Self {
            program: program.to_owned(),
            image: image.clone(),
            listener: UnixListener::bind(agent)?,
            directory,
        };
        let mut running = this.start(this.boot_command(&format!("{PARAMETERS} {TEMPLATE}"), true)?)?;
        // Open until the guest is saved.
        let _stream = running.accept_prepared(&this.listener)?;
        request(this.connect()?, "PATCH", "/vm", &json!({"state": "Paused"}))?;
        let files = json!({
            "snapshot_type": "Full", "snapshot_path": this.path("state"), "mem_file_path": this.path("memory"),
        });
        request(this.connect()?, "PUT", "/snapshot/create", &files)?;
        Ok(this)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Firecracker, which is to boot a guest whose kernel has these parameters.
    fn boot_command(&self, parameters: &str, with_api: bool) -> Result<Command> {
        let file = self.path("config");
        let text = config(&self.image, parameters, &self.path("vsock")).to_string();
        fs::write(&file, text)?;
        let mut command = self.command()?;
        command.arg("--config-file").arg(file);
        if with_api {
            command.arg("--api-sock").arg(self.path("api"));
        } else {
            command.arg("--no-api");
        }
        Ok(command)
    }

    fn command(&self) -> Result<Command> {
        let log = File::options().create(true).append(true).open(self.path("log"))?;
        let mut command = Command::new(&self.program);
        command
            .arg("--enable-pci")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }

    /// Executes `command` without the sockets of the Firecracker before, which are in its way.
    fn start(&self, command: Command) -> Result<Running> {
        for socket in ["vsock", "api"] {
            match fs::remove_file(self.path(socket)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Running::start(command, &self.path("log"))
    }

    /// A connection to the API.
    fn connect(&self) -> Result<UnixStream> {
        let until = Instant::now() + DEADLINE;
        loop {
            match UnixStream::connect(self.path("api")) {
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

    /// Executes Firecracker without a guest, and connects to its API as soon as it has one.
    fn with_api(&self) -> Result<(Running, UnixStream)> {
        let mut command = self.command()?;
        command.arg("--api-sock").arg(self.path("api"));
        let mut running = self.start(command)?;
        let created = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        created.add_watch(self.directory.path(), AddWatchFlags::IN_CREATE)?;
        while !self.path("api").exists() {
            running.wait_readable(&created).context("no API")?;
            created.read_events()?;
        }
        let stream = self.connect()?;
        Ok((running, stream))
    }
}

/// The configuration of a guest.
fn config(image: &Image, parameters: &str, vsock: &Path) -> Value {
    json!({
        "boot-source": {
            "kernel_image_path": image.kernel, "initrd_path": image.initramfs, "boot_args": parameters,
        },
        "drives": [],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 512},
        "vsock": {"guest_cid": GUEST_CID, "uds_path": vsock},
    })
}

impl Vmm for Firecracker {
    fn boot(&self) -> Result<f64> {
        let command = self.boot_command(PARAMETERS, false)?;
        let started = Instant::now();
        let mut running = self.start(command)?;
        running.accept(&self.listener)?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    }

    fn restore(&self) -> Result<f64> {
        let snapshot = json!({
            "snapshot_path": self.path("state"),
            "mem_backend": {"backend_type": "File", "backend_path": self.path("memory")},
            "resume_vm": true,
        });
        let started = Instant::now();
        let (mut running, api) = self.with_api()?;
        request(api, "PUT", "/snapshot/load", &snapshot)?;
        running.accept(&self.listener)?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_firecracker_is_an_error() {
        let image = Image {
            kernel: "/kernel".into(),
            initramfs: "/initramfs".into(),
        };
        let error = Firecracker::save(Path::new("/nowhere/firecracker"), &image);
        let error = format!("{:#}", error.err().unwrap());
        assert!(error.contains("executing /nowhere/firecracker"), "{error}");
    }
}
