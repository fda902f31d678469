//! A guest under standalone `nacre-vmm`, as its test sees it: its console, its vsock port, its shared
//! directory and its end. Everything has a deadline, and dropping a guest ends it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::{initramfs, vsock, workload};

/// How long a guest may take for each step, unless its test says otherwise. Generous, because emulated hosts
/// need seconds for what others do in milliseconds.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Part of the VMM's message that the agent's port was dialed.
const READY: &str = "the agent connected";
/// The workload's program, beside the running one.
const WORKLOAD_PROGRAM: &str = "nacre-guest-workload";

/// Runs `vmm`, which ends when its agent has connected. Returns how long after its execution that was, and what it
/// printed.
///
/// # Errors
/// If `vmm` can't be executed or fails, or no agent connects.
pub fn until_connected(mut vmm: Command) -> Result<(Duration, String)> {
    let started = Instant::now();
    let mut child = vmm.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut stderr = child.stderr.take().context("no standard error")?;
    let (mut log, mut part, mut connected) = (Vec::new(), [0; 4096], None);
    loop {
        let count = stderr.read(&mut part)?;
        if count == 0 {
            break;
        }
        log.extend_from_slice(&part[..count]);
        if connected.is_none() && String::from_utf8_lossy(&log).contains(READY) {
            connected = Some(started.elapsed());
        }
    }
    let (status, text) = (child.wait()?, String::from_utf8_lossy(&log).into_owned());
    ensure!(status.success(), "nacre-vmm: {status}\n{text}");
    let connected = connected.with_context(|| format!("no agent connected\n{text}"))?;
    Ok((connected, text))
}

/// An installed build of Nacre, with an initramfs that has the workloads.
#[derive(Debug)]
pub struct Build {
    vmm: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    agent_initramfs: PathBuf,
    _directory: Arc<TempDir>,
}

impl Build {
    /// The build at `prefix`.
    ///
    /// # Errors
    /// If the workload's program is not beside the running one.
    pub fn at(prefix: &Path) -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name(WORKLOAD_PROGRAM);
        let bytes = initramfs::pack(&program)
            .with_context(|| format!("packing {}; run: cargo build -p nacre-tests", program.display()))?;
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("initramfs");
        fs::write(&file, bytes).with_context(|| format!("writing {}", file.display()))?;
        Ok(Self {
            vmm: prefix.join("bin/nacre-vmm"),
            kernel: prefix.join("share/nacre/vmlinux"),
            initramfs: file,
            agent_initramfs: prefix.join("share/nacre/initramfs.cpio"),
            _directory: Arc::new(directory),
        })
    }

    /// The installed initramfs, which has the agent.
    pub fn agent_initramfs(&self) -> &Path {
        &self.agent_initramfs
    }

    /// The same build with another initramfs.
    #[must_use]
    pub fn with_initramfs(&self, initramfs: &Path) -> Self {
        Self {
            vmm: self.vmm.clone(),
            kernel: self.kernel.clone(),
            initramfs: initramfs.to_owned(),
            agent_initramfs: self.agent_initramfs.clone(),
            _directory: Arc::clone(&self._directory),
        }
    }

    /// The VMM with kernel, initramfs and `arguments`.
    pub fn vmm(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.vmm);
        command
            .arg("--kernel")
            .arg(&self.kernel)
            .arg("--initrd")
            .arg(&self.initramfs)
            .args(arguments);
        command
    }

    /// Runs the VMM with kernel, initramfs and `arguments` until it exits. Returns its standard error.
    ///
    /// # Errors
    /// If it fails.
    pub fn run_vmm(&self, arguments: &[&str]) -> Result<String> {
        let output = self.vmm(arguments).stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.success(),
            "nacre-vmm {arguments:?}: {}\n{text}",
            output.status
        );
        Ok(text)
    }

    /// Boots a guest with an empty shared directory, whose VMM exits once it has saved it.
    ///
    /// # Errors
    /// If the VMM fails.
    pub fn save(&self, options: &Options<'_>) -> Result<()> {
        let cmdline = cmdline(options);
        self.run_vmm(&[&["--cmdline", &cmdline], options.arguments].concat())
            .map(drop)
    }

    /// Continues a guest that was saved, whose shared directory was empty, with another one.
    ///
    /// # Errors
    /// If `nacre-vmm` can't be executed.
    pub fn restore(&self, arguments: &[&str]) -> Result<Guest> {
        let shared = Shared::new(None)?;
        Self::start(self.vmm(arguments), shared)
    }

    /// Boots a guest.
    ///
    /// # Errors
    /// If `nacre-vmm` can't be executed.
    pub fn boot(&self, options: &Options<'_>) -> Result<Guest> {
        let shared = Shared::new(options.storage)?;
        let cmdline = cmdline(options);
        let mut command = with_mounts(&self.vmm, &shared.path, options.mounts)?;
        command
            .arg("--kernel")
            .arg(&self.kernel)
            .arg("--initrd")
            .arg(&self.initramfs);
        command.args(["--cmdline", &cmdline]).args(options.arguments);
        Self::start(command, shared)
    }

    /// Boots a guest under another VMM. Its options are those that do not name nacre-vmm's arguments; `command` makes its
    /// command line. Its standard error must have the guest's serial port.
    ///
    /// # Errors
    /// If `command` fails, or what it returns can't be executed.
    pub fn boot_under(
        &self,
        options: &Options<'_>,
        command: impl FnOnce(&OtherVmm<'_>) -> Result<Command>,
    ) -> Result<Guest> {
        let shared = Shared::new(options.storage)?;
        let command = command(&OtherVmm {
            kernel: &self.kernel,
            initramfs: &self.initramfs,
            parameters: &cmdline(options),
            shared: &shared.path,
        })?;
        Guest::start(command, shared)
    }

    /// Executes `command`, a nacre-vmm, with a shared directory and a vsock socket.
    fn start(mut command: Command, shared: Shared) -> Result<Guest> {
        command
            .arg("--share")
            .arg(&shared.path)
            .arg("--vsock-uds")
            .arg(&shared.socket);
        Guest::start(command, shared)
    }
}

/// What another VMM boots a guest from.
#[derive(Debug, Clone, Copy)]
pub struct OtherVmm<'a> {
    /// The kernel.
    pub kernel: &'a Path,
    /// The initramfs, which has the workloads.
    pub initramfs: &'a Path,
    /// The kernel's parameters that the workload needs.
    pub parameters: &'a str,
    /// The directory to share.
    pub shared: &'a Path,
}

/// The directory that a guest shares.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// The VMM's socket, beside it.
    socket: PathBuf,
    _directory: TempDir,
}

impl Shared {
    /// Makes it in `storage`, or where temporary files are.
    fn new(storage: Option<&Path>) -> Result<Self> {
        let directory = match storage {
            Some(storage) => tempfile::tempdir_in(storage)?,
            None => tempfile::tempdir()?,
        };
        let path = directory.path().join("shared");
        fs::create_dir(&path)?;
        Ok(Self {
            path,
            socket: directory.path().join("vsock"),
            _directory: directory,
        })
    }
}

/// What a guest's kernel command line has for its workload.
fn cmdline(options: &Options<'_>) -> String {
    let mut cmdline = format!("{}={}", workload::NAME, options.workload);
    for (key, value) in options.parameters {
        cmdline += &format!(" {}.{key}={value}", workload::NAME);
    }
    cmdline + &format!(" {}", options.cmdline)
}

/// A command that executes `program`, for which each of `mounts` in `directory` is a mount. They are in a mount
/// namespace of its own, so that they end with it.
fn with_mounts(program: &Path, directory: &Path, mounts: &[&str]) -> Result<Command> {
    if mounts.is_empty() {
        return Ok(Command::new(program));
    }
    let mut command = Command::new("unshare");
    let script = "program=$1; cd \"$2\"; shift 2; while [ \"$1\" != -- ]; do mount --bind \"$1\" \"$1\" || exit; shift; done; \
                  shift; exec \"$program\" \"$@\"";
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(program)
        .arg(directory);
    for mount in mounts {
        fs::create_dir_all(directory.join(mount))?;
        command.arg(mount);
    }
    command.arg("--");
    Ok(command)
}

/// What a guest is booted with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// The name of its workload.
    pub workload: &'a str,
    /// Parameters of the workload.
    pub parameters: &'a [(&'a str, &'a str)],
    /// Parameters of the kernel.
    pub cmdline: &'a str,
    /// Directories that the shared directory has from the start. For the VMM, each is a mount of its own, as a
    /// container's root file system and its volumes are.
    pub mounts: &'a [&'a str],
    /// The directory of the host in which the shared directory is made, if it is not that of temporary files.
    pub storage: Option<&'a Path>,
    /// Arguments of `nacre-vmm` besides kernel, initramfs, command line, shared directory and vsock socket.
    pub arguments: &'a [&'a str],
}

/// A guest and its VMM.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    /// For [`Guest::command`].
    stdin: ChildStdin,
    /// Lines of the VMM's standard error, which has the guest's console, too.
    lines: Receiver<String>,
    /// Those that were read.
    log: Vec<String>,
    shared: Shared,
}

impl Guest {
    /// Executes `command`, a VMM whose standard error has the guest's console.
    fn start(mut command: Command, shared: Shared) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("executing {}", command.get_program().display()))?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stderr = child.stderr.take().context("no standard error")?;
        let (sender, lines) = channel();
        // The thread ends with the VMM, which closes its standard error, or when nobody listens.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(std::io::Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            stdin,
            lines,
            log: Vec::new(),
            shared,
        })
    }

    /// The VMM's PID.
    pub fn vmm_pid(&self) -> u32 {
        self.child.id()
    }

    /// The host's path of the directory that the guest shares.
    pub fn shared(&self) -> &Path {
        &self.shared.path
    }

    /// Waits until the workload is ready and connects to it. Reads and writes of the stream fail after
    /// [`DEADLINE`].
    ///
    /// # Errors
    /// If the guest ends instead, or is not ready within [`DEADLINE`].
    pub fn connect(&mut self) -> Result<UnixStream> {
        self.wait_for(READY, DEADLINE)?;
        let mut stream =
            UnixStream::connect(&self.shared.socket).context("connecting to the VMM's vsock socket")?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        writeln!(stream, "CONNECT {}", vsock::PORT)?;
        // The answer is `OK <host port>`. Byte by byte, because what follows is the workload's.
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            stream
                .read_exact(&mut byte)
                .context("reading the VMM's answer to CONNECT")?;
            answer.push(byte[0]);
        }
        let answer = String::from_utf8_lossy(&answer);
        ensure!(
            answer.starts_with("OK "),
            "the VMM answered {answer:?} to CONNECT"
        );
        Ok(stream)
    }

    /// Sends `line` to a VMM that was started with `--commands`.
    ///
    /// # Errors
    /// If the VMM has exited.
    pub fn command(&mut self, line: &str) -> Result<()> {
        writeln!(self.stdin, "{line}").with_context(|| format!("sending {line:?} to the VMM"))
    }

    /// Adds the devices that every VM has, of a VMM that was started with `--commands`. The guest finds them
    /// by [`workload::scan_pci_bus`].
    ///
    /// # Errors
    /// If the VMM does not add them within [`DEADLINE`].
    pub fn attach_common(&mut self) -> Result<()> {
        self.command("attach-common")?;
        self.wait_for("added the devices", DEADLINE)?;
        Ok(())
    }

    /// Waits for a line of the VMM or of the console that contains `text`, and returns it.
    ///
    /// # Errors
    /// If the VMM exits instead, or there is no such line within `deadline`.
    pub fn wait_for(&mut self, text: &str, deadline: Duration) -> Result<String> {
        let until = Instant::now() + deadline;
        while let Some(line) = self.next_line(until)? {
            if line.contains(text) {
                return Ok(line);
            }
        }
        bail!("the VMM exited before it printed {text:?}\n{}", self.output());
    }

    /// Waits until the guest powers itself off; returns the workload's report.
    ///
    /// # Errors
    /// If the VMM exits with another code than 0, or not within `deadline`.
    pub fn finish(mut self, deadline: Duration) -> Result<Value> {
        let until = Instant::now() + deadline;
        while self.next_line(until)?.is_some() {}
        let status = self.child.wait()?;
        ensure!(status.success(), "nacre-vmm: {status}\n{}", self.output());
        let file = self.shared.path.join(workload::REPORT);
        let report = fs::read(&file).with_context(|| format!("no report\n{}", self.output()))?;
        serde_json::from_slice(&report).context("parsing the report")
    }

    /// The next line; None after the last. Fails if there is none before `until`, or if the workload failed.
    fn next_line(&mut self, until: Instant) -> Result<Option<String>> {
        let left = until.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => {
                self.log.push(line.clone());
                ensure!(!line.contains(workload::FAILED), "{}", self.output());
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("timed out waiting for the guest\n{}", self.output()),
        }
    }

    /// What the VMM and the console have printed so far.
    fn output(&self) -> String {
        format!(
            "output of the VMM and the guest's console:\n{}",
            self.log.join("\n")
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Errors mean that it has exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
