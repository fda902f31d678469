//! The VMM's end of the control socket: what the shim asks for, what it is told. Used by the main thread; the vsock
//! device sends connections through the same socket, since a packet is one message.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use nacre_protocol::control::{
    CONFIG_FDS, Channel, Configure, Error as ChannelError, FromVmm, Outcome, Step, ToVmm,
};

use crate::log::Limited;
use crate::machine::{Failure, Machine};
use crate::virtio::vsock::{Host, Ports, Refused};

/// Why the shim could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The first message is not `Configure`.
    #[error("the first message is not Configure")]
    NotConfigured,
    /// `Configure` comes with other descriptors than it should.
    #[error("{0} descriptors beside Configure instead of {CONFIG_FDS}")]
    Descriptors(usize),
}

/// The descriptors beside `Configure`, by name.
pub struct ConfigFiles {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// The guest kernel.
    pub kernel: File,
    /// The guest's initramfs.
    pub initrd: File,
    /// The console's ring.
    pub console: File,
}

/// The socket.
#[derive(Debug, Clone)]
pub struct Control(Arc<Channel>);

impl Control {
    /// Takes over the socket at descriptor `fd`.
    #[must_use]
    pub fn new(fd: RawFd) -> Self {
        Self(Arc::new(Channel::new(own(fd))))
    }

    /// The vsock device's way to the shim: the guest's connections go over the same socket.
    #[must_use]
    pub fn vsock_host(&self) -> ShimHost {
        ShimHost {
            channel: Arc::clone(&self.0),
            log: Limited::new(),
        }
    }

    /// Waits for `Configure`.
    ///
    /// # Errors
    /// [`Error`] where something else comes.
    pub fn configuration(&self) -> Result<(Configure, ConfigFiles), Error> {
        let (message, fds) = self.0.receive::<ToVmm>()?;
        let ToVmm::Configure(configure) = message else {
            return Err(Error::NotConfigured);
        };
        let count = fds.len();
        let [kvm, kernel, initrd, console] =
            <[OwnedFd; CONFIG_FDS]>::try_from(fds).map_err(|_| Error::Descriptors(count))?;
        let files = ConfigFiles {
            kvm,
            kernel: kernel.into(),
            initrd: initrd.into(),
            console: console.into(),
        };
        Ok((configure, files))
    }

    /// Tells that a step is done.
    pub fn step(&self, name: &str) {
        match Step::now(name) {
            Ok(step) => self.tell(&FromVmm::Step(step)),
            Err(error) => eprintln!("nacre-vmm: the time of {name:?}: {error}"),
        }
    }

    /// Tells that the guest is about to run.
    pub fn running(&self) {
        self.tell(&FromVmm::Running);
    }

    /// Tells that the machine could not be built.
    pub fn failed(&self, failure: &Failure) {
        self.failed_at(failure.step, &failure.error, failure.hint());
    }

    /// Tells that `step` failed.
    pub fn failed_at(&self, step: &str, error: &dyn std::error::Error, hint: Option<String>) {
        self.tell(&FromVmm::Failed {
            step: step.to_owned(),
            error: error.to_string(),
            hint,
        });
    }

    /// Tells how the guest ended.
    pub fn ended(&self, outcome: Outcome) {
        self.tell(&FromVmm::Ended(outcome));
    }

    /// Answers one message. Called when the socket is readable.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] where the shim is gone, else what was not understood.
    pub fn answer(&self, machine: &Machine) -> Result<(), Error> {
        match self.0.receive::<ToVmm>()?.0 {
            ToVmm::QueryExits => self.tell(&FromVmm::Exits(machine.exits())),
            // A second one changes nothing; the descriptors beside it are closed.
            ToVmm::Configure(_) => eprintln!("nacre-vmm: a second Configure is ignored"),
        }
        Ok(())
    }

    /// A shim that can't be told is gone: the socket becomes readable and the VMM ends by that.
    fn tell(&self, message: &FromVmm) {
        if let Err(error) = self.0.send(message, &[]) {
            eprintln!("nacre-vmm: telling the shim {message:?}: {error}");
        }
    }
}

/// Sends the guest's connections to the shim.
#[derive(Debug)]
pub struct ShimHost {
    channel: Arc<Channel>,
    log: Limited,
}

impl Host for ShimHost {
    /// Refuses where the shim is gone. Waits where the socket is full: the shim reads it in its main loop.
    fn connect(&mut self, ports: Ports, stream: OwnedFd) -> Result<(), Refused> {
        let message = FromVmm::Connection {
            host_port: ports.host,
            guest_port: ports.guest,
        };
        let sent = self.channel.send(&message, &[stream.as_raw_fd()]);
        sent.map_err(|error| {
            self.log
                .say(|| format!("a connection to port {}: {error}", ports.host));
            Refused
        })
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[allow(unsafe_code, reason = "the shim passes the socket as a bare number")]
fn own(fd: RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: the command line says that this descriptor is the VMM's to take; main takes it once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::IntoRawFd as _;

    fn pair() -> (Channel, Control) {
        let (shim, vmm) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        (Channel::new(shim), Control::new(vmm.into_raw_fd()))
    }

    fn configure() -> ToVmm {
        ToVmm::Configure(Configure {
            build_id: "b".to_owned(),
            pod: "p".to_owned(),
            memory_mib: 1,
            vcpus: 1,
            extra_cmdline: String::new(),
            console_to_stderr: false,
        })
    }

    #[test]
    fn a_configuration_comes_with_its_files() {
        let (shim, vmm) = pair();
        let files: Vec<File> = (0..CONFIG_FDS).map(|_| tempfile::tempfile().unwrap()).collect();
        files[3].set_len(7).unwrap();
        let fds: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
        shim.send(&configure(), &fds).unwrap();
        let (configure, files) = vmm.configuration().unwrap();
        assert_eq!(configure.pod, "p");
        assert_eq!(files.console.metadata().unwrap().len(), 7);
    }

    #[test]
    fn a_configuration_without_all_of_its_files_is_refused() {
        let (shim, vmm) = pair();
        let file = tempfile::tempfile().unwrap();
        shim.send(&configure(), &[file.as_raw_fd()]).unwrap();
        assert!(matches!(vmm.configuration(), Err(Error::Descriptors(1))));
        shim.send(&ToVmm::QueryExits, &[]).unwrap();
        assert!(matches!(vmm.configuration(), Err(Error::NotConfigured)));
    }

    #[test]
    fn a_connection_of_the_guest_goes_to_the_shim_or_is_refused() {
        let (shim, vmm) = pair();
        let mut host = vmm.vsock_host();
        let stream = || OwnedFd::from(tempfile::tempfile().unwrap());
        host.connect(Ports { guest: 8, host: 7 }, stream()).unwrap();
        let (message, fds) = shim.receive::<FromVmm>().unwrap();
        assert_eq!(
            (message, fds.len()),
            (
                FromVmm::Connection {
                    host_port: 7,
                    guest_port: 8
                },
                1
            )
        );
        drop(shim);
        assert_eq!(host.connect(Ports { guest: 8, host: 7 }, stream()), Err(Refused));
    }

    #[test]
    fn a_failure_names_step_reason_and_hint() {
        let (shim, vmm) = pair();
        let error = crate::boot::kernel::Error::NoPvhEntry;
        vmm.failed(&Failure {
            step: "read guest images",
            error: crate::boot::Error::from(error).into(),
        });
        let FromVmm::Failed { step, error, hint } = shim.receive::<FromVmm>().unwrap().0 else {
            panic!()
        };
        assert_eq!(step, "read guest images");
        assert!(error.contains("PVH"), "{error}");
        assert!(hint.unwrap().contains("vmlinux"));
    }
}
