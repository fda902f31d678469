//! The VM: QEMU under software emulation, with the host's root file system over virtio-fs. Called by `host`.
//! QEMU emulates AMD SVM with nested paging, so the VM has a working /dev/kvm.
//!
//! Ports and file servers are connected by inherited sockets, which have no path. Every process has a
//! parent-death signal, so that none survives the driver.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

use crate::Arguments;
use crate::parts::{part, prepare};
use crate::wire;

/// Memory of the VM, as QEMU takes it.
const MEMORY: &str = "4096M";

/// Directory of Debian's SeaBIOS, which QEMU's packages do not include.
const SEABIOS: &str = "/usr/share/seabios";

/// Paths of virtiofsd: in QEMU's package (bookworm), and in its own package (later releases).
const FILE_SERVERS: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// A running VM. Dropping it kills QEMU and the file servers.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    file_servers: Vec<Child>,
    /// Control messages in both directions ([`wire`]).
    pub control: UnixStream,
    /// To the command's standard input.
    pub stdin: UnixStream,
    /// From the command's standard output.
    pub stdout: UnixStream,
    /// From the command's standard error.
    pub stderr: UnixStream,
}

/// The files that QEMU needs to boot the VM.
#[derive(Debug)]
pub struct Boot {
    kernel: PathBuf,
    initramfs: PathBuf,
    /// `lib/modules` of the kernel package.
    pub modules: PathBuf,
    qemu: PathBuf,
    firmware: PathBuf,
}

impl Boot {
    /// Finds them, after downloading or building those that are missing.
    pub fn prepare(checkout: &Path) -> Result<Self> {
        let parts = prepare(checkout, &["vm"])?;
        Ok(Self {
            kernel: part(&parts, "kernel")?,
            initramfs: part(&parts, "initramfs")?,
            modules: part(&parts, "modules")?,
            qemu: part(&parts, "qemu")?,
            firmware: part(&parts, "firmware")?,
        })
    }
}

impl Machine {
    /// Starts QEMU and its file servers; `target` is shared for writing.
    pub fn start(arguments: &Arguments, boot: &Boot, target: &Path) -> Result<Self> {
        let mut command = with_death_signal(&boot.qemu);
        base(&mut command, arguments, boot)?;
        let mut inherited = Vec::new();
        let mut file_servers = Vec::new();
        for (tag, source) in [(wire::TAG_ROOT, Path::new("/")), (wire::TAG_TARGET, target)] {
            let (child, stream) = serve_files(tag, source)?;
            file_servers.push(child);
            add_file_system(&mut command, tag, &stream)?;
            inherited.push(OwnedFd::from(stream));
        }
        command.args(["-device", "virtio-serial-pci,max_ports=5"]);
        let mut ports = Vec::new();
        for name in [
            wire::PORT_CONTROL,
            wire::PORT_STDIN,
            wire::PORT_STDOUT,
            wire::PORT_STDERR,
        ] {
            let (ours, stream) = UnixStream::pair()?;
            add_port(&mut command, name, &stream)?;
            inherited.push(OwnedFd::from(stream));
            ports.push(ours);
        }
        let Ok([control, stdin, stdout, stderr]) = <[UnixStream; 4]>::try_from(ports) else {
            bail!("expected four ports")
        };
        let qemu = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting qemu-system-x86_64 (is it installed? make setup)")?;
        Ok(Self {
            qemu,
            file_servers,
            control,
            stdin,
            stdout,
            stderr,
        })
    }

    /// The console, and QEMU's own standard error. Can be taken once.
    pub fn take_output(&mut self) -> Result<(ChildStdout, ChildStderr)> {
        let stdout = self
            .qemu
            .stdout
            .take()
            .context("QEMU's standard output was taken before")?;
        let stderr = self
            .qemu
            .stderr
            .take()
            .context("QEMU's standard error was taken before")?;
        Ok((stdout, stderr))
    }

    /// Waits for QEMU, which has closed its output; returns its exit status as text.
    pub fn ended(&mut self) -> String {
        self.qemu
            .wait()
            .map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The file servers first: they print an error if QEMU disconnects.
        for child in self
            .file_servers
            .iter_mut()
            .chain(std::iter::once(&mut self.qemu))
        {
            // Both calls fail only if the process was waited for before.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A command that the kernel kills when this process ends.
pub fn with_death_signal(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Makes `fd` inheritable by processes that are started later; returns its number as text.
pub fn inherit(fd: impl AsFd) -> io::Result<String> {
    let flags = fcntl_getfd(fd.as_fd())?;
    fcntl_setfd(fd.as_fd(), flags.difference(FdFlags::CLOEXEC))?;
    Ok(fd.as_fd().as_raw_fd().to_string())
}

fn base(command: &mut Command, arguments: &Arguments, boot: &Boot) -> Result<()> {
    let driver = std::env::current_exe()?;
    let driver = driver.to_str().filter(|path| !path.contains([' ', '"']));
    let driver = driver.context(
        "the checkout's path has a space or a quote, which the VM's kernel command line cannot carry",
    )?;
    let loglevel = if arguments.verbose { 6 } else { 4 };
    // Mitigations are off: no other tenant shares the VM. The TSC's frequency is passed because measuring it
    // fails on a busy host (`tsc`), and the clock watchdog is off because all emulated clocks derive from the
    // same one of this machine.
    let khz = crate::tsc::khz();
    let append = format!(
        "console=ttyS0 loglevel={loglevel} panic=-1 mitigations=off nokaslr tsc_early_khz={khz} tsc=reliable \
         random.trust_cpu=on no_timer_check cryptomgr.notests NACRE_LAB_DRIVER={driver}"
    );
    command
        .arg("-L")
        .arg(&boot.firmware)
        .args(["-L", SEABIOS])
        // QEMU emulates string instructions byte by byte; without ERMS and FSRM kernels copy 8 bytes at a
        // time.
        .args([
            "-M",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max,-pku,-erms,-fsrm",
        ])
        .args(["-smp", &arguments.cpus.to_string(), "-m", MEMORY])
        .args([
            "-object",
            &format!("memory-backend-memfd,id=ram,size={MEMORY},share=on"),
        ])
        .args(["-numa", "node,memdev=ram"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args([
            "-chardev",
            "file,id=console,path=/dev/stdout",
            "-serial",
            "chardev:console",
        ])
        .args(["-device", "virtio-rng-pci"])
        .arg("-kernel")
        .arg(&boot.kernel)
        .arg("-initrd")
        .arg(&boot.initramfs)
        .args(["-append", &append]);
    Ok(())
}

/// Starts a virtio-fs server for the directory `source`; returns it and QEMU's end of the connection.
fn serve_files(tag: &str, source: &Path) -> Result<(Child, UnixStream)> {
    let program = FILE_SERVERS.iter().find(|path| Path::new(path).exists());
    let program = program.context("virtiofsd is not installed; run: make setup")?;
    let address = SocketAddr::from_abstract_name(format!("nacre-lab-{}-{tag}", std::process::id()))?;
    let listener = UnixListener::bind_addr(&address).context("creating a socket for virtiofsd")?;
    let mut command = with_death_signal(program);
    command.arg(format!("--fd={}", inherit(&listener)?));
    if *program == FILE_SERVERS[0] {
        command
            .arg("-f")
            .arg("-o")
            .arg(join("source=", source))
            .args(["-o", "sandbox=chroot,cache=always,xattr,flock,log_level=err"]);
    } else {
        command.arg("--shared-dir").arg(source).args([
            "--sandbox",
            "chroot",
            "--cache",
            "always",
            "--xattr",
            "--log-level",
            "error",
        ]);
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {program} (it needs root)"))?;
    let stream = UnixStream::connect_addr(&address).context("connecting to virtiofsd")?;
    Ok((child, stream))
}

fn join(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(prefix);
    text.push(path);
    text
}

fn add_file_system(command: &mut Command, tag: &str, stream: &UnixStream) -> Result<()> {
    command
        .args(["-chardev", &format!("socket,id=fs-{tag},fd={}", inherit(stream)?)])
        .args([
            "-device",
            &format!("vhost-user-fs-pci,chardev=fs-{tag},tag={tag}"),
        ]);
    Ok(())
}

fn add_port(command: &mut Command, name: &str, stream: &UnixStream) -> Result<()> {
    command
        .args(["-chardev", &format!("socket,id={name},fd={}", inherit(stream)?)])
        .args(["-device", &format!("virtserialport,chardev={name},name={name}")]);
    Ok(())
}
