//! A VM by hand: everything comes from the command line, what becomes of it goes to standard error.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::{Context as _, bail};
use nacre_protocol::control::Outcome;
use nacre_protocol::guest::SHARED_TAG;
use nacre_protocol::vsock::AGENT_PORT;
use nacre_vmm::config::{Config, ConsoleTo};
use nacre_vmm::jail::{self, Confinement, ThreadKind, Violation};
use nacre_vmm::machine::{self, Failure, Resources, Sources};
use nacre_vmm::virtio::{fs, vsock};
use nacre_vmm::watch::{End, Wait, watch};
use vmm_sys_util::eventfd::EventFd;

use crate::ByHand;

/// Most streams that the guest may open to nobody in particular.
const MAX_STREAMS: usize = 64;

/// Runs what the command line says.
pub fn run(arguments: &ByHand) -> anyhow::Result<ExitCode> {
    let config = config(arguments)?;
    let stop = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).context("eventfd")?;
    let started = Arc::new(OnceLock::new());
    let host = Listener {
        started: Arc::clone(&started),
        stop: if arguments.until_ready {
            Some(stop.try_clone()?)
        } else {
            None
        },
        streams: Vec::new(),
    };
    let resources = resources(arguments, host)?;
    let confinement = confinement(arguments)?;
    let mut steps = vec![("jail closed", Instant::now())];
    let step = |name| steps.push((name, Instant::now()));
    let mut machine = machine::build(&config, resources, &confinement, step).map_err(explain)?;
    if arguments.until_ready {
        show(&steps);
    }
    confinement.confine(ThreadKind::Control)?;
    started.get_or_init(Instant::now);
    machine.run();
    let wait = Wait {
        keys: arguments.console,
        stop: Some(&stop),
        ..Wait::default()
    };
    let end = watch(&machine, wait).context("waiting for the guest")?;
    if arguments.exits {
        for (kind, count) in machine.exits() {
            eprintln!("{count:>10} {kind}");
        }
    }
    Ok(match end {
        End::Guest(outcome) => {
            eprintln!("nacre-vmm: {outcome}");
            ExitCode::from(exit_code(&outcome))
        }
        End::Stopped => ExitCode::SUCCESS,
        End::Shim(reason) => bail!("a shim where there is none: {reason}"),
    })
}

/// Says how long each step took.
fn show(steps: &[(&str, Instant)]) {
    for ((_, before), (name, done)) in steps.iter().zip(steps.iter().skip(1)) {
        eprintln!(
            "nacre-vmm: {name}: {:.1} ms",
            (*done - *before).as_secs_f64() * 1000.0
        );
    }
}

fn config(arguments: &ByHand) -> anyhow::Result<Config> {
    let (console, words) = if arguments.console {
        (ConsoleTo::Terminal, "")
    } else {
        (ConsoleTo::Stderr, "quiet loglevel=4 ")
    };
    let config = Config {
        pod: "by hand".to_owned(),
        memory_mib: arguments.memory_mib,
        vcpus: arguments.vcpus,
        extra_cmdline: format!("{words}{}", arguments.cmdline),
        console,
    };
    Ok(config.checked()?)
}

fn resources(arguments: &ByHand, host: Listener) -> anyhow::Result<Resources> {
    let (Some(kernel), Some(initrd)) = (&arguments.kernel, &arguments.initrd) else {
        bail!("--kernel and --initrd are needed");
    };
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("opening /dev/kvm")?;
    let listener = arguments.vsock_uds.as_deref().map(listen).transpose()?;
    Ok(Resources {
        kvm: kvm.into(),
        kernel: open(kernel)?,
        initrd: open(initrd)?,
        console: None,
        sources: Sources {
            vsock: vsock::Config {
                host: Box::new(host),
                listener,
            },
            files: arguments
                .share
                .as_deref()
                .map(|share| files(share, arguments.no_jail))
                .transpose()?,
        },
    })
}

/// The shared directory is the root of the jail.
fn files(share: &Path, no_jail: bool) -> anyhow::Result<fs::Config> {
    let root = if no_jail {
        share
            .canonicalize()
            .with_context(|| format!("the shared directory {}", share.display()))?
    } else {
        "/".into()
    };
    Ok(fs::Config {
        tag: SHARED_TAG.to_owned(),
        root,
        prepared: fs::Prepared::before_jail().context("opening /proc/self/fd")?,
    })
}

fn confinement(arguments: &ByHand) -> anyhow::Result<Confinement> {
    if arguments.no_jail {
        return Ok(Confinement::none());
    }
    jail::enter(arguments.share.as_deref()).context("use --no-jail to run without")?;
    let violation = if arguments.log_calls {
        Violation::Log
    } else {
        Violation::Kill
    };
    Ok(Confinement::closed(violation)?)
}

/// Takes the guest's connections and keeps them open, unread; says when the agent dials in.
struct Listener {
    started: Arc<OnceLock<Instant>>,
    /// Written when the agent has dialled in.
    stop: Option<EventFd>,
    streams: Vec<OwnedFd>,
}

impl vsock::Host for Listener {
    fn connect(&mut self, ports: vsock::Ports, stream: OwnedFd) -> Result<(), vsock::Refused> {
        if self.streams.len() >= MAX_STREAMS {
            return Err(vsock::Refused);
        }
        self.streams.push(stream);
        if ports.host == AGENT_PORT {
            let took = self
                .started
                .get()
                .map_or(0, |started| started.elapsed().as_millis());
            eprintln!("nacre-vmm: the agent dialled in {took} ms after the guest's first instruction");
            if let Some(Err(error)) = self.stop.as_ref().map(|stop| stop.write(1)) {
                eprintln!("nacre-vmm: telling the main thread: {error}");
            }
        }
        Ok(())
    }
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let listener = UnixListener::bind(path).with_context(|| format!("making socket {}", path.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("opening {}", path.display()))
}

fn explain(failure: Failure) -> anyhow::Error {
    match failure.hint() {
        Some(hint) => anyhow::anyhow!("{failure}\nhint: {hint}"),
        None => failure.into(),
    }
}

fn exit_code(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::PowerOff => 0,
        Outcome::Reset { .. } => 10,
        Outcome::Panic => 11,
        Outcome::Fault { .. } => 12,
    }
}
