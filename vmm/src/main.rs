//! `nacre-vmm`: runs one microVM, for the shim (`--control-fd`) or by hand (`--kernel`), or tells whether it could
//! (`--probe`). Only this file knows the command line and the exit codes.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Parser;
use nacre_protocol::control::Outcome;
use nacre_vmm::config::{Config, ConsoleTo};
use nacre_vmm::control::Control;
use nacre_vmm::jail::{self, Confinement, ThreadKind, Violation};
use nacre_vmm::machine::{self, Failure, Machine, Resources, Sources};
use nacre_vmm::probe;
use nacre_vmm::watch::{End, watch};

/// Runs one microVM on KVM.
///
/// The shim starts it with --control-fd and sends configuration and open files over that socket. By hand it takes
/// them from the command line: give at least --kernel (an uncompressed vmlinux built with CONFIG_PVH, as Nacre's
/// build makes it) and --initrd, and --console to see the guest.
///
/// Exit codes by hand: 0 the guest powered off, 1 it could not be started, 10 it reset itself, 11 its kernel
/// panicked, 12 the VMM failed. With --probe: 0 KVM runs Linux here, 3 it can't.
#[derive(Debug, Parser)]
#[command(name = "nacre-vmm", version = nacre_protocol::BUILD_ID)]
struct Arguments {
    /// The socket to the shim; everything else comes from there.
    #[arg(long, value_name = "FD", conflicts_with_all = ["kernel", "probe"])]
    control_fd: Option<i32>,
    /// Boot a tiny test guest that does what Linux does early, and tell in one line whether KVM works.
    #[arg(long, conflicts_with = "kernel")]
    probe: bool,
    /// The guest kernel.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["control_fd", "probe"], requires = "initrd")]
    kernel: Option<PathBuf>,
    /// The guest's initramfs (cpio).
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Words to add to the kernel command line.
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// Guest memory in MiB.
    #[arg(long, value_name = "N", default_value_t = 512)]
    memory_mib: u32,
    /// Number of vCPUs, 1 to 32.
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u8,
    /// Connect the guest's serial console to this terminal, with all of the kernel's messages.
    #[arg(long)]
    console: bool,
    /// Print the VM's exits by kind when it ends.
    #[arg(long)]
    exits: bool,
    /// Run without namespaces and system call filters, for debugging or without root.
    #[arg(long)]
    no_jail: bool,
    /// Let system calls that the filters forbid go through, and have the host's kernel log them (dmesg: type=1326).
    #[arg(long, conflicts_with = "no_jail")]
    log_calls: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.probe {
        let report = probe::run(Path::new("/dev/kvm"));
        println!("{report}");
        return ExitCode::from(report.exit_code());
    }
    match arguments.control_fd {
        Some(fd) => for_shim(&Control::new(fd)),
        None => by_hand(&arguments).unwrap_or_else(|error| {
            eprintln!("nacre-vmm: {error:#}");
            ExitCode::FAILURE
        }),
    }
}

/// Runs what the shim sends. What goes wrong is told to the shim; standard error has it, too.
fn for_shim(control: &Control) -> ExitCode {
    let (configure, files) = match control.configuration() {
        Ok(configuration) => configuration,
        Err(error) => {
            control.failed_at("receive configuration", &error, None);
            eprintln!("nacre-vmm: {error}");
            return ExitCode::FAILURE;
        }
    };
    let config = match Config::try_from(configure) {
        Ok(config) => config,
        Err(error) => {
            control.failed_at("check configuration", &error, None);
            eprintln!("nacre-vmm: {error}");
            return ExitCode::FAILURE;
        }
    };
    let confinement = match jail::enter(None).and_then(|()| Confinement::closed(Violation::Kill)) {
        Ok(confinement) => confinement,
        Err(error) => {
            control.failed_at("close jail", &error, None);
            eprintln!("nacre-vmm: {error}");
            return ExitCode::FAILURE;
        }
    };
    control.step("jail closed");
    let resources = Resources {
        kvm: files.kvm,
        kernel: files.kernel,
        initrd: files.initrd,
        console: Some(files.console),
        sources: Sources::default(),
    };
    let built =
        machine::build(&config, resources, &confinement, |step| control.step(step)).and_then(|machine| {
            confinement
                .confine(ThreadKind::Control)
                .map_err(Failure::at("confine main thread"))?;
            Ok(machine)
        });
    match built {
        Ok(machine) => run_for_shim(machine, control),
        Err(failure) => {
            control.failed(&failure);
            eprintln!("nacre-vmm: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run_for_shim(mut machine: Machine, control: &Control) -> ExitCode {
    control.running();
    machine.run();
    match watch(&machine, Some(control), false) {
        Ok(End::Guest(outcome)) => {
            control.ended(outcome);
            ExitCode::SUCCESS
        }
        Ok(End::Shim(reason)) => {
            eprintln!("nacre-vmm: the shim: {reason}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let error = format!("waiting: {error}");
            eprintln!("nacre-vmm: {error}");
            control.ended(Outcome::Fault {
                part: "main thread".to_owned(),
                error,
            });
            ExitCode::FAILURE
        }
    }
}

fn by_hand(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let (Some(kernel), Some(initrd)) = (&arguments.kernel, &arguments.initrd) else {
        bail!("--kernel and --initrd are needed");
    };
    let config = Config {
        pod: "by hand".to_owned(),
        memory_mib: arguments.memory_mib,
        vcpus: arguments.vcpus,
        extra_cmdline: arguments.cmdline.clone(),
        console: if arguments.console {
            ConsoleTo::Terminal
        } else {
            ConsoleTo::Stderr
        },
    }
    .checked()?;
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("opening /dev/kvm")?;
    let resources = Resources {
        kvm: kvm.into(),
        kernel: open(kernel)?,
        initrd: open(initrd)?,
        console: None,
        sources: Sources::default(),
    };
    let confinement = if arguments.no_jail {
        Confinement::none()
    } else {
        jail::enter(None).context("use --no-jail to run without")?;
        Confinement::closed(if arguments.log_calls {
            Violation::Log
        } else {
            Violation::Kill
        })?
    };
    let mut machine = machine::build(&config, resources, &confinement, |_| {}).map_err(explain)?;
    confinement.confine(ThreadKind::Control)?;
    machine.run();
    let end = watch(&machine, None, arguments.console).context("waiting for the guest")?;
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
        End::Shim(reason) => bail!("a shim where there is none: {reason}"),
    })
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
