//! The mode for the shim: the configuration and its files arrive over the control socket, and the steps of
//! the start, the guest's connections and the end of the VM are reported over it. Called by `main`; never
//! returns.

mod template;

use std::error::Error as StdError;

use nacre_protocol::control::{Configure, Descriptors, Outcome};
use nacre_protocol::fault::{self, FaultPoint};

use crate::config::Config;
use crate::control::Control;
use crate::control::devices::{self, Refused};
use crate::jail::calls::CONTROL;
use crate::jail::{self, Confinement, Violation};
use crate::machine::{self, Failure, Machine, Resources, restore};
use crate::main_loop::{self, Inputs, StopReason};
use crate::process::exit_now;
use template::{Continuation, Template};

/// A failed step before [`machine::build`], with its error.
struct StepError(&'static str, Box<dyn StdError>);

impl StepError {
    fn at<E: StdError + 'static>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self(step, Box::new(error))
    }
}

/// What the shim has configured, once the jail is closed.
struct Prepared {
    config: Config,
    resources: Resources,
    confinement: Confinement,
    /// None if the guest boots.
    continuation: Option<Continuation>,
}

/// Runs the VM that the shim configures until the VM ends or the shim closes the socket.
pub fn run(control: &Control) -> ! {
    fault::prepare();
    let prepared = prepare(control);
    let prepared =
        prepared.unwrap_or_else(|StepError(step, error)| control.fail_at(step, error.as_ref(), None));
    let machine = build(control, prepared).unwrap_or_else(|failure| control.fail(&failure));
    run_machine(machine, control)
}

/// Receives the configuration, opens what must be opened outside of the jail, and closes the jail.
fn prepare(control: &Control) -> Result<Prepared, StepError> {
    let (configure, descriptors) = control
        .receive_configuration()
        .map_err(StepError::at("receive configuration"))?;
    let check = StepError::at("check configuration");
    let (config, resources, template) =
        check_configuration(configure, descriptors, control).map_err(check)?;
    fault::reach(FaultPoint::VmmConfigured);
    jail::enter(None).map_err(StepError::at("close jail"))?;
    let confinement = Confinement::closed(Violation::Kill).map_err(StepError::at("close jail"))?;
    fault::reach(FaultPoint::VmmJailed);
    control.send_step("jail closed");
    let opened = template.map(|template| template.open(&config, &resources));
    let continuation = opened.and_then(|opened| {
        let refused = |error: &template::Refused| {
            control.send_template_refused(&error.to_string(), error.is_transient());
        };
        opened.inspect_err(refused).ok()
    });
    Ok(Prepared {
        config,
        resources,
        confinement,
        continuation,
    })
}

/// Checks every field of `configure`, and puts every descriptor in its place. Reads no file of the template.
pub(crate) fn check_configuration(
    configure: Configure,
    mut descriptors: Descriptors,
    control: &Control,
) -> Result<(Config, Resources, Option<Template>), Refused> {
    let config = Config::try_from(&configure)?;
    configure.check_devices()?;
    let template = configure
        .template
        .map(|files| Template::take(files, &mut descriptors, &configure.devices))
        .transpose()?;
    let devices = configure.devices.into_iter();
    let devices = devices.map(|config| devices::builder(config, &mut descriptors, control));
    let devices = devices.collect::<Result<_, _>>()?;
    let resources = Resources {
        kvm: descriptors.take("kvm", configure.kvm)?,
        kernel: descriptors.take("kernel", configure.kernel)?.into(),
        initrd: descriptors.take("initrd", configure.initrd)?.into(),
        console_ring: Some(descriptors.take("console_ring", configure.console_ring)?.into()),
        devices,
    };
    descriptors.finish()?;
    Ok((config, resources, template))
}

/// Boots or restores the machine, and confines the main thread.
fn build(control: &Control, prepared: Prepared) -> Result<Machine, Failure> {
    let Prepared {
        config,
        resources,
        confinement,
        continuation,
    } = prepared;
    let on_step = |step| control.send_step(step);
    let machine = match continuation {
        None => machine::build(&config, resources, &confinement, on_step)?,
        Some(continuation) => continue_from(continuation, &config, resources, &confinement, on_step)?,
    };
    confinement
        .confine(&CONTROL)
        .map_err(Failure::at("confine main thread"))?;
    Ok(machine)
}

/// Restores the machine. Devices that the template does not have are attached before the guest goes on.
fn continue_from(
    continuation: Continuation,
    config: &Config,
    resources: Resources,
    confinement: &Confinement,
    on_step: impl FnMut(&'static str),
) -> Result<Machine, Failure> {
    let Continuation { snapshot, prepared } = continuation;
    let mut devices = resources.devices;
    let first = restore::configured_devices(&snapshot.machine).len();
    let later = devices.split_off(first.min(devices.len()));
    let resources = restore::Resources {
        prepared,
        snapshot,
        console_ring: resources.console_ring,
        devices,
    };
    let mut machine = restore::restore(config, resources, confinement, on_step)?;
    for device in later {
        machine
            .attach(device)
            .map_err(Failure::at("attach virtio devices"))?;
    }
    machine
        .renew_generation_id()
        .map_err(Failure::at("renew the generation id"))?;
    Ok(machine)
}

fn run_machine(mut machine: Machine, control: &Control) -> ! {
    fault::reach(FaultPoint::VmmBuilt);
    control.send_running();
    machine.start();
    fault::reach(FaultPoint::VmmRuns);
    let inputs = Inputs {
        control: Some(control),
        ..Inputs::default()
    };
    match main_loop::run(&mut machine, inputs) {
        Ok(StopReason::VmExited(outcome)) => control.end(outcome),
        Ok(StopReason::ShimGone(reason)) => {
            eprintln!("nacre-vmm: exiting because of the shim: {reason}");
            exit_now(0)
        }
        Ok(StopReason::Requested) => exit_now(0),
        Err(errno) => {
            let error = format!("poll: {errno}");
            eprintln!("nacre-vmm: main thread: {error}");
            control.end(Outcome::Fault {
                part: "main thread".to_owned(),
                error,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::kernel;
    use crate::config::ConsoleOutput;
    use crate::virtio::vsock;
    use nacre_protocol::control::{Channel, FromVmm};
    use nix::poll::{PollFd, PollFlags, poll};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::fs::File;
    use std::io::Write as _;
    use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
    use std::process::{Command, Stdio};

    /// Set in the child process of the test below, to the number of its control socket.
    const CHILD: &str = "NACRE_TEST_CONTROL_FD";

    /// Its destructor runs on the vsock device's worker and never returns: the worker then hangs as the file
    /// server does in a system call to a hung host file system.
    struct Hanging;

    impl vsock::Host for Hanging {
        fn expects(&mut self, _ports: vsock::Ports) -> bool {
            false
        }

        fn connect(&mut self, _ports: vsock::Ports, _stream: OwnedFd) -> Result<(), vsock::Refused> {
            Err(vsock::Refused)
        }
    }

    impl Drop for Hanging {
        fn drop(&mut self) {
            loop {
                std::thread::park();
            }
        }
    }

    /// A VM with a worker that hangs, whose guest reports a kernel panic at once.
    fn machine_with_a_hung_worker() -> Machine {
        // nop; nop; mov al, 1; mov dx, 0x505; out dx, al; hlt. The entry point is the third byte.
        let code = b"\x90\x90\xb0\x01\x66\xba\x05\x05\xee\xf4";
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let mut initrd = tempfile::tempfile().unwrap();
        initrd.write_all(b"initrd").unwrap();
        let config = Config {
            pod: "test".to_owned(),
            memory_mib: 64,
            vcpus: 1,
            max_vcpus: 1,
            extra_cmdline: String::new(),
            console: ConsoleOutput::RingOnly,
            can_be_saved: false,
        };
        let resources = Resources {
            kvm: kvm.into(),
            kernel: kernel::tests::vmlinux(code, &kernel::tests::pvh_note()),
            initrd,
            console_ring: None,
            devices: vec![Box::new(|env| {
                let config = vsock::Config {
                    host: Box::new(Hanging),
                    listener: None,
                };
                vsock::spawn(config, env)
            })],
        };
        machine::build(&config, resources, &Confinement::none(), |_| {}).unwrap()
    }

    #[test]
    fn the_process_exits_after_its_last_message_even_if_a_worker_hangs() {
        if let Ok(fd) = std::env::var(CHILD) {
            run_machine(machine_with_a_hung_worker(), &Control::new(fd.parse().unwrap()));
        }
        if !std::path::Path::new("/dev/kvm").exists() {
            return println!("skipped: no /dev/kvm");
        }
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
        rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC).unwrap();
        let (_, name) = concat!(
            module_path!(),
            "::the_process_exits_after_its_last_message_even_if_a_worker_hangs"
        )
        .split_once("::")
        .unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(CHILD, theirs.as_raw_fd().to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        drop(theirs);
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let shim = Channel::new(ours);
        assert_eq!(shim.receive::<FromVmm>().unwrap().0, FromVmm::Running);
        assert_eq!(
            shim.receive::<FromVmm>().unwrap().0,
            FromVmm::Ended(Outcome::Panic)
        );
        let mut pidfds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let exited_in_time = poll(&mut pidfds, 1000u16).unwrap();
        if exited_in_time == 0 {
            child.kill().unwrap();
        }
        assert!(child.wait().unwrap().success() && exited_in_time == 1);
    }
}
