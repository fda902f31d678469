//! The standalone mode, without a shim: the configuration comes from the command line, and the result goes to
//! standard error and the exit code. For debugging and for measuring a boot; the shim never uses it.

mod disk;
mod pause_resume;
mod tap;

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::{Context as _, bail};
use nacre_protocol::control::{Outcome, check_pluggable};
use nacre_protocol::guest::SHARED_TAG;
use nacre_protocol::vsock::AGENT_PORT;
use nacre_vmm::config::{Config, ConsoleOutput};
use nacre_vmm::jail::calls::CONTROL;
use nacre_vmm::jail::{self, Confinement, Violation};
use nacre_vmm::machine::vm_exit::borrow_eventfd;
use nacre_vmm::machine::{self, DeviceBuilder, Failure, Resources};
use nacre_vmm::main_loop::{self, Inputs, LateDevices, StandardInput, StopReason};
use nacre_vmm::virtio::{blk, fs, mem, net, vsock};
use vmm_sys_util::eventfd::EventFd;

pub use self::disk::DiskOption;
use self::pause_resume::Cycles;
pub use self::tap::TapOption;
use crate::StandaloneArguments;

/// How many of the guest's vsock connections are accepted in all; each costs a descriptor.
const MAX_STREAMS: usize = 64;

/// Runs the VM that `arguments` describe until it ends; returns the exit code.
pub fn run(arguments: &StandaloneArguments) -> anyhow::Result<u8> {
    let config = config(arguments)?;
    let connected = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).context("creating an eventfd")?;
    let guest_started = Arc::new(OnceLock::new());
    let acceptor = StreamAcceptor {
        guest_started: Arc::clone(&guest_started),
        connected: connected.try_clone()?,
        streams: Vec::new(),
    };
    let cycles = arguments.pause_resume.map(Cycles::new).transpose()?;
    let resources = resources(arguments, acceptor)?;
    let late_devices = late_devices(arguments)?;
    let confinement = confinement(arguments)?;
    let mut steps = vec![("jail closed", Instant::now())];
    let on_step = |name| steps.push((name, Instant::now()));
    let mut machine =
        machine::build(&config, resources, &confinement, on_step).map_err(|failure| with_hint(&failure))?;
    if arguments.until_ready {
        print_durations(&steps);
    }
    confinement.confine(&CONTROL)?;
    guest_started.get_or_init(Instant::now);
    machine.run();
    let inputs = Inputs {
        stdin: standard_input(arguments),
        late_devices: Some(&late_devices),
        ..Inputs::default()
    };
    let until_connected = Inputs {
        stop_request: (arguments.until_ready || cycles.is_some()).then(|| borrow_eventfd(&connected)),
        ..inputs
    };
    let mut reason = main_loop::run(&mut machine, until_connected).context("waiting for the guest")?;
    if let (Some(cycles), StopReason::Requested) = (cycles, &reason) {
        reason = match cycles.run(&mut machine, inputs)? {
            Some(reason) => reason,
            None => main_loop::run(&mut machine, inputs).context("waiting for the guest")?,
        };
    }
    if arguments.exits {
        for (kind, count) in machine.exit_counts() {
            eprintln!("{count:>10} {kind}");
        }
    }
    Ok(match reason {
        StopReason::VmExited(outcome) => {
            eprintln!("nacre-vmm: {outcome}");
            exit_code(&outcome)
        }
        StopReason::Requested => 0,
        StopReason::ShimGone(reason) => bail!("unexpected message from a shim in standalone mode: {reason}"),
    })
}

fn standard_input(arguments: &StandaloneArguments) -> StandardInput {
    if arguments.console {
        StandardInput::Console
    } else if arguments.commands {
        StandardInput::Commands
    } else {
        StandardInput::Unused
    }
}

/// Prints how long each of `steps` after the first took.
fn print_durations(steps: &[(&str, Instant)]) {
    for ((_, before), (name, done)) in steps.iter().zip(steps.iter().skip(1)) {
        eprintln!(
            "nacre-vmm: {name}: {:.1} ms",
            (*done - *before).as_secs_f64() * 1000.0
        );
    }
}

fn config(arguments: &StandaloneArguments) -> anyhow::Result<Config> {
    let (console, parameters) = if arguments.console {
        (ConsoleOutput::Terminal, "")
    } else {
        (ConsoleOutput::Stderr, "quiet loglevel=4 ")
    };
    let config = Config {
        pod: "standalone".to_owned(),
        memory_mib: arguments.memory_mib,
        vcpus: arguments.vcpus,
        max_vcpus: arguments.max_vcpus.unwrap_or(arguments.vcpus),
        extra_cmdline: format!("{parameters}{}", arguments.cmdline),
        console,
    };
    Ok(config.validate()?)
}

fn resources(arguments: &StandaloneArguments, acceptor: StreamAcceptor) -> anyhow::Result<Resources> {
    let (Some(kernel), Some(initrd)) = (&arguments.kernel, &arguments.initrd) else {
        bail!("--kernel and --initrd are required");
    };
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("opening /dev/kvm")?;
    Ok(Resources {
        kvm: kvm.into(),
        kernel: open(kernel)?,
        initrd: open(initrd)?,
        console_ring: None,
        devices: devices(arguments, acceptor)?,
    })
}

/// The devices that the shim configures, too; virtio-fs only with `--share`, virtio-net with
/// `--tap`, virtio-blk with `--disk`.
fn devices(arguments: &StandaloneArguments, acceptor: StreamAcceptor) -> anyhow::Result<Vec<DeviceBuilder>> {
    let vsock = vsock::Config {
        host: Box::new(acceptor),
        listener: arguments.vsock_uds.as_deref().map(listen).transpose()?,
    };
    let mut devices: Vec<DeviceBuilder> = vec![Box::new(|env| vsock::spawn(vsock, env))];
    if let Some(share) = &arguments.share {
        let config = fs_config(share, arguments.no_jail)?;
        devices.push(Box::new(|env| fs::spawn(config, env)));
    }
    for (number, tap) in (1..).zip(&arguments.tap) {
        let config = tap.open(number)?;
        devices.push(Box::new(|env| net::spawn(config, env)));
    }
    for (number, disk) in (1..).zip(&arguments.disk) {
        let config = disk.open(number)?;
        devices.push(Box::new(|env| blk::spawn(config, env)));
    }
    if let Some(max_mib) = arguments.max_plugged_mib {
        let config = mem_config(max_mib)?;
        devices.push(Box::new(|env| mem::spawn(config, env)));
    }
    Ok(devices)
}

fn mem_config(max_mib: u32) -> anyhow::Result<mem::Config> {
    if let Err(error) = check_pluggable(max_mib) {
        bail!("--max-plugged-mib {max_mib}: {error}");
    }
    Ok(mem::Config {
        max_bytes: u64::from(max_mib) << 20,
        on_reached: Box::new(|bytes| eprintln!("nacre-vmm: {} MiB are plugged in", bytes >> 20)),
    })
}

/// The devices that commands add, the first one last.
fn late_devices(arguments: &StandaloneArguments) -> anyhow::Result<LateDevices> {
    let late = LateDevices::default();
    let first = arguments.disk.len().saturating_add(1);
    for (index, disk) in arguments.late_disk.iter().enumerate().rev() {
        let config = disk.open(first.saturating_add(index))?;
        late.prepared
            .borrow_mut()
            .push(Box::new(|env| blk::spawn(config, env)));
    }
    let first = arguments.tap.len().saturating_add(1);
    for (index, tap) in arguments.late_tap.iter().enumerate().rev() {
        let config = tap.open(u8::try_from(first.saturating_add(index))?)?;
        late.prepared
            .borrow_mut()
            .push(Box::new(|env| net::spawn(config, env)));
    }
    Ok(late)
}

/// The jail makes the shared directory its root, so the device's root is `/` unless there is no jail.
fn fs_config(share: &Path, no_jail: bool) -> anyhow::Result<fs::Config> {
    let (root, prepared) = if no_jail {
        let root = share
            .canonicalize()
            .with_context(|| format!("resolving the shared directory {}", share.display()))?;
        (root, fs::Prepared::without_jail())
    } else {
        ("/".into(), fs::Prepared::before_jail())
    };
    Ok(fs::Config {
        tag: SHARED_TAG.to_owned(),
        root,
        prepared: prepared.context("opening /proc/self/fd")?,
    })
}

fn confinement(arguments: &StandaloneArguments) -> anyhow::Result<Confinement> {
    if arguments.no_jail {
        return Ok(Confinement::none());
    }
    jail::enter(arguments.share.as_deref()).context("use --no-jail to run without a jail")?;
    let violation = if arguments.log_calls {
        Violation::Log
    } else {
        Violation::Kill
    };
    Ok(Confinement::closed(violation)?)
}

/// Accepts the guest's vsock connections and keeps them open without reading them; prints when the agent
/// connects.
struct StreamAcceptor {
    guest_started: Arc<OnceLock<Instant>>,
    /// Written when the agent has connected.
    connected: EventFd,
    streams: Vec<OwnedFd>,
}

impl vsock::Host for StreamAcceptor {
    fn expects(&mut self, _ports: vsock::Ports) -> bool {
        self.streams.len() < MAX_STREAMS
    }

    fn connect(&mut self, ports: vsock::Ports, stream: OwnedFd) -> Result<(), vsock::Refused> {
        self.streams.push(stream);
        if ports.host == AGENT_PORT {
            let boot_ms = self
                .guest_started
                .get()
                .map_or(0, |started| started.elapsed().as_millis());
            eprintln!("nacre-vmm: the agent connected {boot_ms} ms after the guest's first instruction");
            if let Err(error) = self.connected.write(1) {
                eprintln!("nacre-vmm: waking the main thread: {error}");
            }
        }
        Ok(())
    }
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let listener =
        UnixListener::bind(path).with_context(|| format!("creating the socket {}", path.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("opening {}", path.display()))
}

/// The failure's message, which contains its causes: as a source they would be printed again.
fn with_hint(failure: &Failure) -> anyhow::Error {
    match failure.hint() {
        Some(hint) => anyhow::anyhow!("{failure}\nhint: {hint}"),
        None => anyhow::anyhow!("{failure}"),
    }
}

/// The exit codes that `--help` documents.
fn exit_code(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::PowerOff => 0,
        Outcome::Reset { .. } => 10,
        Outcome::Panic => 11,
        Outcome::Fault { .. } => 12,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_vmm::virtio::DeviceError;

    #[test]
    fn a_failure_is_printed_with_each_cause_once() {
        let error = DeviceError::at("fs", "check the tag")("too long");
        let failure = Failure::at("create virtio devices")(error);
        assert_eq!(
            format!("{:#}", with_hint(&failure)),
            "create virtio devices: virtio device fs: check the tag: too long"
        );
    }
}
