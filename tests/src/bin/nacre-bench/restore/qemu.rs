//! QEMU's microvm machine as a peer. The agent dials the host over vsock (vhost-vsock-pci), which QEMU resets when
//! it has loaded a guest, as nacre-vmm does.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nacre_protocol::guest::{TEMPLATE, TEMPLATE_READY};
use nacre_protocol::vsock::AGENT_PORT;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket};
use tempfile::TempDir;

use super::qmp::{Format, Qmp};
use super::{Differences, Vmm};

/// The next guest's address. Each has its own: a clone dials from the same port, and the host keeps a connection
/// that was closed for seconds.
static NEXT_CID: AtomicU32 = AtomicU32::new(7077);
/// How long a guest may take until its agent connects.
const DEADLINE: Duration = Duration::from_secs(90);

/// The machine without what a guest of nacre-vmm does not have either: interval timer, interrupt controller and clock
/// of a PC, a second I/O APIC, with which come 16 more virtio-mmio devices, and a performance monitoring unit.
/// nacre-vmm has a serial port, too. The firmware needs its option ROMs to boot a kernel.
const MACHINE: &str = "microvm,pcie=on,isa-serial=on,pit=off,pic=off,rtc=off,ioapic2=off";
/// See [`MACHINE`].
const CPU: &str = "host,pmu=off";
/// The parameters of nacre-vmm's guests (`vmm/src/boot/cmdline.rs`) but panic=-1. Without a shared tree the agent ends
/// right after it has dialed: the panic must not end QEMU before the host has seen that.
const PARAMETERS: &str = "pci=noearly panic=0 reboot=acpi no_timer_check noreplace-smp swiotlb=noforce \
    memory_hotplug.online_policy=auto-movable random.trust_cpu=on console=ttyS0 quiet loglevel=4";
/// What is still not alike, for the rows' notes.
pub const DIFFERENCES: Differences = Differences {
    machine: "QEMU also has firmware, fw_cfg, an ACPI event device and 8 idle virtio-mmio devices; it has no jail, \
        no shared tree, and panic=0",
    restore: "it reads the memory, where nacre-vmm maps it",
};

/// What QEMU is started with.
pub struct Qemu {
    /// The emulator.
    pub program: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's image, which has the agent.
    pub initramfs: PathBuf,
}

/// A saved guest of QEMU.
pub struct Peer {
    qemu: Qemu,
    /// The agent's port of the host.
    listener: OwnedFd,
    snapshot: PathBuf,
    /// Of the snapshot; not known before it is saved.
    format: Format,
    log: PathBuf,
    _directory: TempDir,
}

impl Peer {
    /// Boots a guest and saves it when its agent is ready.
    ///
    /// # Errors
    /// If QEMU or vhost-vsock is not there, or the guest is not saved.
    pub fn save(qemu: Qemu) -> Result<Self> {
        let loaded = Command::new("modprobe").arg("vhost_vsock").status()?;
        ensure!(loaded.success(), "no vhost_vsock");
        let directory = tempfile::tempdir()?;
        let control = directory.path().join("qmp");
        let peer = Self {
            qemu,
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
        let mut running = Running::start(command, &peer)?;
        // Open until the guest is saved: its end is how the agent learns that its next life begins.
        let mut stream = running.accept()?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        ensure!(
            byte == [TEMPLATE_READY],
            "the agent does not report that it can be saved"
        );
        let format = Qmp::connect(&control)?.save(&peer.snapshot)?;
        drop(running);
        Ok(Self { format, ..peer })
    }

    /// Milliseconds from the execution of QEMU until the agent connects.
    fn until_connected(&self, command: Command) -> Result<f64> {
        let started = Instant::now();
        let mut running = Running::start(command, self)?;
        running.accept()?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    }

    /// QEMU with a kernel that has these parameters.
    fn boot_command(&self, parameters: &str) -> Result<Command> {
        let mut command = self.command()?;
        command
            .arg("-kernel")
            .arg(&self.qemu.kernel)
            .arg("-initrd")
            .arg(&self.qemu.initramfs)
            .args(["-append", parameters]);
        Ok(command)
    }

    /// QEMU without a kernel: a guest that continues has it in its memory.
    fn command(&self) -> Result<Command> {
        let cid = NEXT_CID.fetch_add(1, Ordering::Relaxed);
        let mut command = Command::new(&self.qemu.program);
        command
            .args(["-M", MACHINE, "-accel", "kvm"])
            .args(["-cpu", CPU, "-m", "512", "-smp", "1"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-serial")
            .arg(format!("file:{}", self.log.display()))
            .arg("-device")
            .arg(format!("vhost-vsock-pci,guest-cid={cid}"))
            .stdin(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&self.log)?);
        Ok(command)
    }
}

impl Vmm for Peer {
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

/// A running QEMU; ends when dropped.
struct Running<'p> {
    child: Child,
    peer: &'p Peer,
}

impl<'p> Running<'p> {
    fn start(mut command: Command, peer: &'p Peer) -> Result<Self> {
        let program = peer.qemu.program.display();
        let child = command.spawn().with_context(|| format!("executing {program}"))?;
        Ok(Self { child, peer })
    }

    /// Waits until the agent connects.
    fn accept(&mut self) -> Result<File> {
        let until = Instant::now() + DEADLINE;
        loop {
            let mut waiting = [PollFd::new(self.peer.listener.as_fd(), PollFlags::POLLIN)];
            // Not longer, to find out if QEMU has ended.
            if poll(&mut waiting, PollTimeout::from(500_u16))? > 0 {
                let stream = rustix::net::accept(&self.peer.listener);
                return Ok(stream.context("accepting the agent's connection")?.into());
            }
            let status = self.child.try_wait()?;
            let log = || std::fs::read_to_string(&self.peer.log).unwrap_or_default();
            ensure!(
                status.is_none() && Instant::now() < until,
                "no agent connected, QEMU: {status:?}\n{}",
                log()
            );
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Errors mean that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
