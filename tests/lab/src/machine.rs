//! The VM: QEMU by software emulation, with the host's root by virtio-fs. Called by `host`. QEMU emulates AMD's SVM with
//! nested paging, so there is a real /dev/kvm inside.
//!
//! Nothing of it has a name in a file system: ports and file servers are connected by inherited sockets. Every process
//! dies with the driver, however that ends.

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

/// Memory of the VM.
const MEMORY: &str = "4096M";

/// Where Debian has the firmware that is no part of QEMU.
const SEABIOS: &str = "/usr/share/seabios";

/// Where virtiofsd is: with QEMU in bookworm, a package of its own later.
const FILE_SERVERS: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// A running VM. Dropping it kills it and its file servers.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    file_servers: Vec<Child>,
    /// JSON lines, both directions.
    pub control: UnixStream,
    /// Towards the command's standard input.
    pub stdin: UnixStream,
    /// From its standard output.
    pub stdout: UnixStream,
    /// From its standard error.
    pub stderr: UnixStream,
}

/// What the VM boots.
#[derive(Debug)]
pub struct Boot {
    kernel: PathBuf,
    initramfs: PathBuf,
    /// `lib/modules` of the kernel's package.
    pub modules: PathBuf,
    qemu: PathBuf,
    firmware: PathBuf,
}

impl Boot {
    /// Gets the kernel and the initramfs.
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
    /// Powers the VM on.
    pub fn start(arguments: &Arguments, boot: &Boot, target: &Path) -> Result<Self> {
        let mut command = mortal(&boot.qemu);
        base(&mut command, arguments, boot)?;
        let mut theirs = Vec::new();
        let mut file_servers = Vec::new();
        for (tag, source) in [(wire::TAG_ROOT, Path::new("/")), (wire::TAG_TARGET, target)] {
            let (child, stream) = serve_files(tag, source)?;
            file_servers.push(child);
            add_file_system(&mut command, tag, &stream)?;
            theirs.push(OwnedFd::from(stream));
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
            theirs.push(OwnedFd::from(stream));
            ports.push(ours);
        }
        let Ok([control, stdin, stdout, stderr]) = <[UnixStream; 4]>::try_from(ports) else {
            bail!("four ports were made")
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

    /// The console, and what QEMU itself says.
    pub fn take_output(&mut self) -> Result<(ChildStdout, ChildStderr)> {
        let stdout = self.qemu.stdout.take().context("QEMU's output was taken")?;
        let stderr = self.qemu.stderr.take().context("QEMU's errors were taken")?;
        Ok((stdout, stderr))
    }

    /// Waits for the end of a QEMU that has closed its output; tells how it ended.
    pub fn ended(&mut self) -> String {
        self.qemu
            .wait()
            .map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The file servers first: they would complain about a QEMU that is gone.
        for child in self
            .file_servers
            .iter_mut()
            .chain(std::iter::once(&mut self.qemu))
        {
            // Either call fails only where the process has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A command that is killed when this process ends, however it does.
pub fn mortal(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Lets the next spawned process have `fd` under its number here.
pub fn inherit(fd: impl AsFd) -> io::Result<String> {
    let flags = fcntl_getfd(fd.as_fd())?;
    fcntl_setfd(fd.as_fd(), flags.difference(FdFlags::CLOEXEC))?;
    Ok(fd.as_fd().as_raw_fd().to_string())
}

fn base(command: &mut Command, arguments: &Arguments, boot: &Boot) -> Result<()> {
    let driver = std::env::current_exe()?;
    let driver = driver.to_str().filter(|path| !path.contains([' ', '"']));
    let driver = driver.context("the checkout's path has a space; the VM's command line can't carry that")?;
    let loglevel = if arguments.verbose { 6 } else { 4 };
    // PCI and ACPI are as QEMU makes them; no mitigations, as nothing here is anybody else's. The clock is told, since
    // measuring it goes wrong on a busy host, and not watched, as all emulated clocks are this machine's.
    let khz = crate::tsc::khz();
    let append = format!(
        "console=ttyS0 loglevel={loglevel} panic=-1 mitigations=off nokaslr tsc_early_khz={khz} tsc=reliable \
         random.trust_cpu=on no_timer_check cryptomgr.notests NACRE_LAB_DRIVER={driver}"
    );
    command
        .arg("-L")
        .arg(&boot.firmware)
        .args(["-L", SEABIOS])
        // The emulator does string instructions byte by byte: without these two features kernels take those of 8 bytes.
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

/// Starts a server of `source`; gives QEMU's end of the connection to it.
fn serve_files(tag: &str, source: &Path) -> Result<(Child, UnixStream)> {
    let program = FILE_SERVERS.iter().find(|path| Path::new(path).exists());
    let program = program.context("virtiofsd is not installed; run: make setup")?;
    let address = SocketAddr::from_abstract_name(format!("nacre-lab-{}-{tag}", std::process::id()))?;
    let listener = UnixListener::bind_addr(&address).context("a socket for virtiofsd")?;
    let mut command = mortal(program);
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
