//! QEMU's microvm machine as a peer. The agent dials the host over vsock (vhost-vsock-pci), which QEMU resets when
//! it has loaded a guest, as nacre-vmm does.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nacre_protocol::guest::TEMPLATE;
use nacre_protocol::vsock::AGENT_PORT;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket};
use tempfile::TempDir;

use super::qmp::{Format, Qmp};
use super::running::Running;
use super::{Differences, Image, PARAMETERS, Vmm};

/// The next guest's address. Each has its own: a clone dials from the same port, and the host keeps a connection
/// that was closed for seconds.
static NEXT_CID: AtomicU32 = AtomicU32::new(7077);
/// The machine without what a guest of nacre-vmm does not have either: interval timer, interrupt controller and clock
/// of a PC, a second I/O APIC, with which come 16 more virtio-mmio devices, and a performance monitoring unit.
/// nacre-vmm has a serial port, too. The firmware needs its option ROMs to boot a kernel.
const MACHINE: &str = "microvm,pcie=on,isa-serial=on,pit=off,pic=off,rtc=off,ioapic2=off";
/// See [`MACHINE`].
const CPU: &str = "host,pmu=off";
/// The guest's memory in MiB.
pub const MEMORY_MIB: u32 = 512;
/// What is still not alike, for the rows' notes.
pub const DIFFERENCES: Differences = Differences {
    machine: "QEMU also has firmware, fw_cfg, an ACPI event device and 8 idle virtio-mmio devices; it has no jail, \
        no shared tree, and panic=0",
    restore: "it reads the memory, where nacre-vmm maps it",
};

/// QEMU, and a saved guest of its.
pub struct Qemu {
    program: PathBuf,
    image: Image,
    /// The agent's port of the host.
    listener: OwnedFd,
    snapshot: PathBuf,
    /// Of the snapshot; not known before it is saved.
    format: Format,
    log: PathBuf,
    _directory: TempDir,
}

impl Qemu {
    /// Boots a guest and saves it when its agent is ready.
    ///
    /// # Errors
    /// If `program`, QEMU, or vhost-vsock is not there, or the guest is not saved.
    pub fn save(program: &Path, image: &Image) -> Result<Self> {
        let loaded = Command::new("modprobe").arg("vhost_vsock").status()?;
        ensure!(loaded.success(), "no vhost_vsock");
        let directory = tempfile::tempdir()?;
        let control = directory.path().join("qmp");
        let peer = Self {
            program: program.to_owned(),
            image: image.clone(),
            listener: listener()?,
            snapshot: directory.path().join("snapshot"),
            format: Format::Stream,
            log: directory.path().join("log"),
            _directory: directory,
        };
        let mut command = peer.boot_command(&format!("{PARAMETERS} {TEMPLATE}"))?;
        command
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", control.display()));
        let mut running = Running::start(command, &peer.log)?;
        // Open until the guest is saved.
        let _stream = running.accept_prepared(&peer.listener)?;
        let format = Qmp::connect(&control)?.save(&peer.snapshot)?;
        drop(running);
        Ok(Self { format, ..peer })
    }

    /// Milliseconds from the execution of QEMU until the agent connects.
    fn until_connected(&self, command: Command) -> Result<f64> {
        let started = Instant::now();
        let mut running = Running::start(command, &self.log)?;
        running.accept(&self.listener)?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    }

    /// QEMU with a kernel that has these parameters.
    fn boot_command(&self, parameters: &str) -> Result<Command> {
        let mut command = self.command()?;
        command
            .arg("-kernel")
            .arg(&self.image.kernel)
            .arg("-initrd")
            .arg(&self.image.initramfs)
            .args(["-append", parameters]);
        Ok(command)
    }

    /// QEMU without a kernel: a guest that continues has it in its memory.
    fn command(&self) -> Result<Command> {
        let cid = NEXT_CID.fetch_add(1, Ordering::Relaxed);
        let mut command = microvm(&self.program, "");
        command
            .arg("-serial")
            .arg(format!("file:{}", self.log.display()))
            .arg("-device")
            .arg(format!("vhost-vsock-pci,guest-cid={cid}"))
            .stdin(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&self.log)?);
        Ok(command)
    }
}

/// QEMU, `program`, with one vCPU and no devices yet; `options` are further ones of the machine.
pub fn microvm(program: &Path, options: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-M", &format!("{MACHINE}{options}"), "-accel", "kvm"])
        .args(["-cpu", CPU, "-m", &MEMORY_MIB.to_string(), "-smp", "1"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command
}

impl Vmm for Qemu {
    fn boot(&self) -> Result<f64> {
        self.until_connected(self.boot_command(PARAMETERS)?)
    }

    fn restore(&self) -> Result<f64> {
        let mut command = self.command()?;
        match self.format {
            Format::Stream => command
                .args(["-incoming", "fd:0"])
                .stdin(File::open(&self.snapshot)?),
            Format::Mapped => command
                .args(["-global", "migration.mapped-ram=on", "-incoming"])
                .arg(format!("file:{}", self.snapshot.display())),
        };
        self.until_connected(command)
    }
}

/// Listens at the agent's port for guests of the host's own vsock.
fn listener() -> Result<OwnedFd> {
    let listener = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("the host has no vsock")?;
    let address = VsockAddr::new(libc::VMADDR_CID_ANY, AGENT_PORT);
    bind(listener.as_raw_fd(), &address).context("binding the agent's port")?;
    listen(&listener, Backlog::new(8)?)?;
    Ok(listener)
}
