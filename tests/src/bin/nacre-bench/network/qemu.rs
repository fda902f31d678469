//! QEMU's microvm machine as a peer: a guest with Nacre's kernel whose network is that of a pod of runc's, by a tap
//! and the same redirections that Nacre makes. /init is this program.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nacre_netlink::{Socket, address, link, redirect};
use nacre_protocol::agent::Address;
use nacre_tests::containerd::ctr::output;
use nacre_tests::guests::initramfs;
use nix::sched::{CloneFlags, setns};
use tempfile::TempDir;

use super::traffic;

/// The emulator, of Debian's package qemu-system-x86.
const QEMU: &str = "qemu-system-x86_64";
/// The tap in the pod's namespace.
const TAP: &str = "qemu0";
/// Most links that either side lists.
const MAX_LINKS: usize = 64;
/// The owner of the redirections, for whoever lists them.
const OWNER: &[u8] = b"nacre-bench";
/// Bits of the network part of a pod's address, as the lab's CNI network has them.
const PREFIX: u32 = 16;

/// Whether the host has QEMU, and vhost for it.
///
/// # Errors
/// If `modprobe` can't be executed.
pub fn is_there() -> Result<bool> {
    let version = Command::new(QEMU).arg("--version").output();
    let loaded = Command::new("modprobe").arg("vhost_net").status()?;
    Ok(version.is_ok_and(|output| output.status.success()) && loaded.success())
}

/// Where a guest runs: in place of a container of a pod.
#[derive(Debug)]
pub struct Place {
    /// The pod's network namespace.
    pub namespace: PathBuf,
    /// The container's cgroup, so that QEMU gets as much of the CPU as other runtimes' pods.
    pub cgroup: PathBuf,
    /// The pod's address.
    pub address: Ipv4Addr,
}

/// A guest; ends when dropped.
pub struct Guest {
    child: Child,
    _initramfs: TempDir,
}

impl Guest {
    /// Boots a guest. Returns when its server listens.
    ///
    /// # Errors
    /// If a step fails, or QEMU ends.
    pub fn boot(kernel: &Path, place: &Place, has_vhost: bool) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("initramfs");
        std::fs::write(&file, initramfs::pack(&std::env::current_exe()?)?)?;
        let namespace = &place.namespace;
        let namespace = File::open(namespace).with_context(|| namespace.display().to_string())?;
        // A thread of its own, since it stays in the namespace.
        let child = std::thread::scope(|scope| {
            let spawned = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET)
                    .context("entering the pod's network namespace")?;
                let mac = tie()?;
                command(kernel, &file, &mac, place.address, has_vhost)
                    .spawn()
                    .with_context(|| format!("executing {QEMU}"))
            });
            spawned
                .join()
                .unwrap_or_else(|_| bail!("the thread that starts QEMU panicked"))
        })?;
        let mut guest = Self {
            child,
            _initramfs: directory,
        };
        guest.wait()?;
        // Only now, since the container's cgroup forbids to open /dev/kvm.
        let processes = place.cgroup.join("cgroup.procs");
        std::fs::write(&processes, guest.pid().to_string())
            .with_context(|| format!("writing {}", processes.display()))?;
        Ok(guest)
    }

    /// The PID of QEMU.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until its server listens.
    fn wait(&mut self) -> Result<()> {
        let mut console = BufReader::new(self.child.stdout.take().context("no console")?);
        let mut log = String::new();
        while !log.lines().any(|line| line == traffic::UP) {
            ensure!(console.read_line(&mut log)? > 0, "QEMU ended: {log}");
        }
        // QEMU must not stop for a console that nobody reads.
        std::thread::spawn(move || std::io::copy(&mut console, &mut std::io::sink()));
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Errors mean that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(kernel: &Path, initramfs: &Path, mac: &str, address: Ipv4Addr, has_vhost: bool) -> Command {
    let vhost = if has_vhost { "on" } else { "off" };
    let mut command = Command::new(QEMU);
    command
        .args([
            "-M",
            "microvm,pcie=on,rtc=off,isa-serial=on",
            "-accel",
            "kvm",
            "-cpu",
            "host",
        ])
        .args([
            "-m",
            "512",
            "-smp",
            "1",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ])
        .arg("-no-reboot")
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-serial", "stdio", "-append"])
        .arg(format!(
            "console=ttyS0 quiet panic=-1 -- --serve-as-guest {address}"
        ))
        .arg("-netdev")
        .arg(format!(
            "tap,id=net,ifname={TAP},script=no,downscript=no,vhost={vhost}"
        ))
        .arg("-device")
        .arg(format!("virtio-net-pci,netdev=net,romfile=,mac={mac}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// Makes a tap in this network namespace and ties it to the namespace's eth0, whose address it returns.
fn tie() -> Result<String> {
    let mut ip = Command::new("ip");
    ip.args(["tuntap", "add", TAP, "mode", "tap", "vnet_hdr"]);
    output(ip)?.success()?;
    let mut socket = Socket::open()?;
    let links = socket.dump(link::list(), MAX_LINKS, link::parse)?;
    let find = |name: &str| {
        let found = links.iter().find(|link| link.name == name);
        found.with_context(|| format!("the namespace has no link {name}"))
    };
    let (eth0, tap) = (find("eth0")?, find(TAP)?);
    for (from, to) in [(tap, eth0), (eth0, tap)] {
        socket.request(redirect::add_qdisc(from.index))?;
        socket.request(redirect::add_filter(from.index, to.index, OWNER))?;
    }
    socket.request(link::set_up(tap.index))?;
    let bytes: Vec<String> = eth0.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(bytes.join(":"))
}

/// What /init of the guest does: gives the guest's link `address` and serves.
///
/// # Errors
/// If a step fails.
pub fn serve_as_guest(address: Ipv4Addr) -> Result<()> {
    let mut socket = Socket::open()?;
    let links = socket.dump(link::list(), MAX_LINKS, link::parse)?;
    let link = links
        .iter()
        .find(|link| link.is_ethernet() && link.kind.is_empty());
    let index = link.context("no Ethernet link")?.index;
    let address = Address {
        address: address.octets().to_vec(),
        prefix_length: PREFIX,
        preferred_s: u32::MAX,
        valid_s: u32::MAX,
        ..Address::default()
    };
    socket.request(address::add(index, &address))?;
    socket.request(link::set_up(index))?;
    traffic::serve()
}
