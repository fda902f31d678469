//! A VM for the shim: configuration and files come over the control socket, and so goes what becomes of it. What
//! goes wrong is told to the shim; standard error has it, too.

use std::error::Error as StdError;

use crate::config::Config;
use crate::control::{ConfigFiles, Control};
use crate::jail::{self, Confinement, ThreadKind, Violation};
use crate::machine::{self, Failure, Machine, Resources, Sources};
use crate::process::exit_now;
use crate::virtio::{fs, vsock};
use crate::watch::{End, Wait, watch};
use nacre_protocol::control::Outcome;
use nacre_protocol::guest::SHARED_TAG;

/// A step before there is a machine that failed.
struct Early(&'static str, Box<dyn StdError>);

impl Early {
    fn at<E: StdError + 'static>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self(step, Box::new(error))
    }
}

/// Runs what the shim sends, to the end of the process.
pub fn run(control: &Control) -> ! {
    let (config, files, jail) =
        prepare(control).unwrap_or_else(|Early(step, error)| control.fail_at(step, error.as_ref(), None));
    let machine = build(control, &config, files, jail).unwrap_or_else(|failure| control.fail(&failure));
    run_machine(machine, control)
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

/// Runs the guest to its end, or to the shim's.
fn run_machine(mut machine: Machine, control: &Control) -> ! {
    control.running();
    machine.run();
    let wait = Wait {
        control: Some(control),
        ..Wait::default()
    };
    match watch(&machine, wait) {
        Ok(End::Guest(outcome)) => control.end(outcome),
        Ok(End::Shim(reason)) => {
            eprintln!("nacre-vmm: the shim: {reason}");
            exit_now(0)
        }
        Ok(End::Stopped) => exit_now(0),
        Err(error) => {
            let error = format!("waiting: {error}");
            eprintln!("nacre-vmm: {error}");
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
    use crate::config::ConsoleTo;
    use nacre_protocol::control::{Channel, FromVmm};
    use nix::poll::{PollFd, PollFlags, poll};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::fs::File;
    use std::io::Write as _;
    use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
    use std::process::{Command, Stdio};

    /// Set in the child process of the test below, to the number of its control socket.
    const CHILD: &str = "NACRE_TEST_CONTROL_FD";

    /// Makes a device whose worker never ends, as a file server's does in a system call to a hung host file system.
    struct Hanging;

    impl vsock::Host for Hanging {
        fn connect(&mut self, _port: u32, _stream: OwnedFd) -> Result<(), vsock::Refused> {
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
        let code = b"\x90\x90\xb0\x01\x66\xba\x05\x05\xee\xf4"; // mov al, 1; mov dx, 0x505; out dx, al; hlt
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let mut initrd = tempfile::tempfile().unwrap();
        initrd.write_all(b"initrd").unwrap();
        let config = Config {
            pod: "test".to_owned(),
            memory_mib: 64,
            vcpus: 1,
            extra_cmdline: String::new(),
            console: ConsoleTo::Ring,
        };
        let resources = Resources {
            kvm: kvm.into(),
            kernel: kernel::tests::vmlinux(code, &kernel::tests::pvh_note()),
            initrd,
            console: None,
            sources: Sources {
                vsock: vsock::Config {
                    host: Box::new(Hanging),
                    listener: None,
                },
                files: None,
            },
        };
        machine::build(&config, resources, &Confinement::none(), |_| {}).unwrap()
    }

    #[test]
    fn the_process_is_gone_after_its_last_message_though_a_worker_hangs() {
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
            "::the_process_is_gone_after_its_last_message_though_a_worker_hangs"
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
        let mut exited = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let gone = poll(&mut exited, 1000u16).unwrap();
        if gone == 0 {
            child.kill().unwrap();
        }
        assert!(child.wait().unwrap().success() && gone == 1);
    }
}
