//! A VM for the shim: configuration and files come over the control socket, and so goes what becomes of it. What
//! goes wrong is told to the shim; standard error has it, too.

use std::error::Error as StdError;
use std::process::ExitCode;

use nacre_protocol::control::Outcome;
use nacre_protocol::guest::SHARED_TAG;
use nacre_vmm::config::Config;
use nacre_vmm::control::{ConfigFiles, Control};
use nacre_vmm::jail::{self, Confinement, ThreadKind, Violation};
use nacre_vmm::machine::{self, Failure, Machine, Resources, Sources};
use nacre_vmm::virtio::{fs, vsock};
use nacre_vmm::watch::{End, Wait, watch};

/// A step before there is a machine that failed.
struct Early(&'static str, Box<dyn StdError>);

impl Early {
    fn at<E: StdError + 'static>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self(step, Box::new(error))
    }
}

/// Runs what the shim sends.
pub fn run(control: &Control) -> ExitCode {
    let built = match prepare(control) {
        Ok((config, files, jail)) => build(control, &config, files, jail),
        Err(Early(step, error)) => {
            control.failed_at(step, error.as_ref(), None);
            eprintln!("nacre-vmm: {step}: {error}");
            return ExitCode::FAILURE;
        }
    };
    match built {
        Ok(machine) => run_machine(machine, control),
        Err(failure) => {
            control.failed(&failure);
            eprintln!("nacre-vmm: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// The closed jail, and what was opened before.
struct Jail {
    confinement: Confinement,
    tree: fs::Prepared,
}

fn prepare(control: &Control) -> Result<(Config, ConfigFiles, Jail), Early> {
    let (configure, files) = control
        .configuration()
        .map_err(Early::at("receive configuration"))?;
    let config = Config::try_from(configure).map_err(Early::at("check configuration"))?;
    let tree = fs::Prepared::before_jail().map_err(Early::at("open /proc/self/fd"))?;
    jail::enter(None).map_err(Early::at("close jail"))?;
    let confinement = Confinement::closed(Violation::Kill).map_err(Early::at("close jail"))?;
    control.step("jail closed");
    Ok((config, files, Jail { confinement, tree }))
}

fn build(control: &Control, config: &Config, files: ConfigFiles, jail: Jail) -> Result<Machine, Failure> {
    let resources = Resources {
        kvm: files.kvm,
        kernel: files.kernel,
        initrd: files.initrd,
        console: Some(files.console),
        sources: Sources {
            vsock: vsock::Config {
                host: Box::new(control.vsock_host()),
                listener: None,
            },
            // The root of this process's mount namespace, into which the shim moves the containers' mounts.
            files: Some(fs::Config {
                tag: SHARED_TAG.to_owned(),
                root: "/".into(),
                prepared: jail.tree,
            }),
        },
    };
    let confinement = jail.confinement;
    let machine = machine::build(config, resources, &confinement, |step| control.step(step))?;
    confinement
        .confine(ThreadKind::Control)
        .map_err(Failure::at("confine main thread"))?;
    Ok(machine)
}

fn run_machine(mut machine: Machine, control: &Control) -> ExitCode {
    control.running();
    machine.run();
    let wait = Wait {
        control: Some(control),
        ..Wait::default()
    };
    match watch(&machine, wait) {
        Ok(End::Guest(outcome)) => {
            control.ended(outcome);
            ExitCode::SUCCESS
        }
        Ok(End::Shim(reason)) => {
            eprintln!("nacre-vmm: the shim: {reason}");
            ExitCode::SUCCESS
        }
        Ok(End::Stopped) => ExitCode::SUCCESS,
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
