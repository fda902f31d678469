//! The standalone mode, without a shim: the configuration comes from the command line, and the result goes to
//! standard error and the exit code. For debugging and for measuring a boot; the shim never uses it.

mod disk;
mod pause_resume;
mod save;
mod streams;
mod tap;

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::{Context as _, bail};
use nacre_protocol::control::{Outcome, check_pluggable};
use nacre_protocol::guest::{SHARED_TAG, TEMPLATE};
use nacre_vmm::config::{Config, ConsoleOutput};
use nacre_vmm::jail::calls::{CONTROL, SAVER};
use nacre_vmm::jail::{self, Confinement, Violation};
use nacre_vmm::machine::{self, DeviceBuilder, Failure, Machine, Resources, restore};
use nacre_vmm::main_loop::{self, Inputs, LateDevices, StandardInput, StopReason};
use nacre_vmm::snapshot::{Images, Snapshot};
use nacre_vmm::virtio::{balloon, blk, fs, mem, net, vsock};

pub use self::disk::DiskOption;
use self::pause_resume::Cycles;
use self::save::{save, target};
use self::streams::{Agent, StreamAcceptor};
pub use self::tap::TapOption;
use crate::StandaloneArguments;

/// Runs the VM that `arguments` describe until it ends; returns the exit code.
pub fn run(arguments: &StandaloneArguments) -> anyhow::Result<u8> {
    let guest_started = Arc::new(OnceLock::new());
    let (acceptor, agent) = StreamAcceptor::new(Arc::clone(&guest_started))?;
    let cycles = arguments.pause_resume.map(Cycles::new).transpose()?;
    let plan = Plan::new(arguments, acceptor)?;
    let target = target(arguments, plan.extra_cmdline(arguments))?;
    let late_devices = late_devices(arguments)?;
    let confinement = confinement(arguments)?;
    let mut steps = vec![("jail closed", Instant::now())];
    let on_step = |name| steps.push((name, Instant::now()));
    let mut machine = plan
        .build(&confinement, on_step)
        .map_err(|failure| with_hint(&failure))?;
    if arguments.until_ready {
        print_durations(&steps);
    }
    confinement.confine(if target.is_some() { &SAVER } else { &CONTROL })?;
    guest_started.get_or_init(Instant::now);
    if arguments.restore.is_none() {
        machine.run();
    } else if target.is_none() {
        machine
            .renew_generation_id()
            .context("renewing the generation id")?;
        machine.resume().context("continuing the guest")?;
    }
    let inputs = Inputs {
        stdin: standard_input(arguments),
        late_devices: Some(&late_devices),
        ..Inputs::default()
    };
    let reason = match target {
        Some(target) => save(&mut machine, &target, &agent, arguments.restore.is_some())?,
        None => run_guest(&mut machine, inputs, &agent, arguments.until_ready, cycles)?,
    };
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

/// Handles `inputs` until the guest ends, or until its agent connects if `until_ready`. Once it has
/// connected, carries out `cycles`.
fn run_guest(
    machine: &mut Machine,
    inputs: Inputs<'_>,
    agent: &Agent,
    until_ready: bool,
    cycles: Option<Cycles>,
) -> anyhow::Result<StopReason> {
    let until_connected = Inputs {
        stop_request: (until_ready || cycles.is_some()).then(|| agent.connected()),
        ..inputs
    };
    let reason = main_loop::run(machine, until_connected).context("waiting for the guest")?;
    let (Some(cycles), StopReason::Requested) = (cycles, &reason) else {
        return Ok(reason);
    };
    Ok(match cycles.run(machine, inputs)? {
        Some(reason) => reason,
        None => main_loop::run(machine, inputs).context("waiting for the guest")?,
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
    let extra_cmdline = match arguments.save {
        Some(_) => format!("{} {TEMPLATE}", arguments.cmdline),
        None => arguments.cmdline.clone(),
    };
    let config = Config {
        pod: "standalone".to_owned(),
        memory_mib: arguments.memory_mib,
        vcpus: arguments.vcpus,
        max_vcpus: arguments.max_vcpus.unwrap_or(arguments.vcpus),
        extra_cmdline,
        console: if arguments.console {
            ConsoleOutput::Terminal
        } else {
            ConsoleOutput::QuietStderr
        },
        can_be_saved: arguments.save.is_some(),
    };
    Ok(config.validate()?)
}

/// Where the machine comes from.
enum Plan {
    Boot {
        config: Config,
        resources: Resources,
    },
    Restore {
        config: Config,
        kvm: OwnedFd,
        snapshot: Box<Snapshot>,
        devices: Vec<DeviceBuilder>,
    },
}

impl Plan {
    fn new(arguments: &StandaloneArguments, acceptor: StreamAcceptor) -> anyhow::Result<Self> {
        let images = images(arguments)?;
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        let kvm = kvm.context("opening /dev/kvm")?.into();
        let Some(directory) = &arguments.restore else {
            let config = config(arguments)?;
            let resources = Resources {
                kvm,
                kernel: open(images.kernel)?,
                initrd: open(images.initramfs)?,
                console_ring: None,
                // The last step, since it binds a socket.
                devices: devices(arguments, acceptor)?,
            };
            return Ok(Self::Boot { config, resources });
        };
        let snapshot = Snapshot::open(directory, images)?;
        let size = snapshot.machine.size;
        Ok(Self::Restore {
            config: Config {
                memory_mib: size.memory_mib,
                vcpus: size.vcpus,
                max_vcpus: size.max_vcpus,
                ..config(arguments)?
            },
            kvm,
            snapshot: Box::new(snapshot),
            devices: devices(arguments, acceptor)?,
        })
    }

    /// The parameters of the guest's kernel besides the VMM's own and [`TEMPLATE`].
    fn extra_cmdline<'a>(&'a self, arguments: &'a StandaloneArguments) -> &'a str {
        match self {
            Self::Boot { .. } => &arguments.cmdline,
            Self::Restore { snapshot, .. } => &snapshot.extra_cmdline,
        }
    }

    fn build(self, confinement: &Confinement, on_step: impl FnMut(&'static str)) -> Result<Machine, Failure> {
        match self {
            Self::Boot { config, resources } => machine::build(&config, resources, confinement, on_step),
            Self::Restore {
                config,
                kvm,
                snapshot,
                devices,
            } => {
                let resources = restore::Resources {
                    prepared: restore::prepare(kvm, &snapshot)?,
                    snapshot: *snapshot,
                    console_ring: None,
                    devices,
                };
                restore::restore(&config, resources, confinement, on_step)
            }
        }
    }
}

fn images(arguments: &StandaloneArguments) -> anyhow::Result<Images<'_>> {
    let (Some(kernel), Some(initramfs)) = (&arguments.kernel, &arguments.initrd) else {
        bail!("--kernel and --initrd are required");
    };
    Ok(Images { kernel, initramfs })
}

/// The devices that the shim configures, too; virtio-fs only with `--share` and in a guest that is saved or was,
/// virtio-net with `--tap`, virtio-blk with `--disk`. A guest that is saved has the balloon, too, so that it has
/// reported its free pages before ([`save`]).
fn devices(arguments: &StandaloneArguments, acceptor: StreamAcceptor) -> anyhow::Result<Vec<DeviceBuilder>> {
    let vsock = vsock::Config {
        host: Box::new(acceptor),
        listener: arguments.vsock_uds.as_deref().map(listen).transpose()?,
    };
    let mut devices: Vec<DeviceBuilder> = vec![Box::new(|env| vsock::spawn(vsock, env))];
    if let Some(config) = fs_config(arguments)? {
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
    if arguments.save.is_some() && arguments.restore.is_none() {
        devices.push(Box::new(balloon::spawn));
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

/// The shared tree. A guest that is saved or was saved always has one, since a pod has it; without `--share`, it
/// is the jail's root, which is empty, or, without a jail, a file that can't be mounted.
fn fs_config(arguments: &StandaloneArguments) -> anyhow::Result<Option<fs::Config>> {
    let is_template = arguments.save.is_some() || arguments.restore.is_some();
    let root = match &arguments.share {
        None if !is_template => return Ok(None),
        None if arguments.no_jail => "/dev/null".into(),
        Some(share) if arguments.no_jail => share
            .canonicalize()
            .with_context(|| format!("resolving the shared directory {}", share.display()))?,
        // The jail makes the shared directory its root.
        None | Some(_) => "/".into(),
    };
    let prepared = if arguments.no_jail {
        fs::Prepared::without_jail()
    } else {
        fs::Prepared::before_jail()
    };
    Ok(Some(fs::Config {
        tag: SHARED_TAG.to_owned(),
        root,
        prepared: prepared.context("opening /proc/self/fd")?,
    }))
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
