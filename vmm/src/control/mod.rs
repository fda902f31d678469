//! The VMM's end of the control socket to the shim ([`nacre_protocol::control`] has the messages). Used by
//! the main thread; the vsock device's worker sends the guest's connections over the same socket, since each
//! packet is one whole message.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use nacre_protocol::control::{
    CONFIG_FDS, Channel, Configure, Error as ChannelError, FromVmm, Outcome, Step, ToVmm,
};

use crate::log::LimitedLog;
use crate::machine::{Failure, Machine};
use crate::process::exit_now;
use crate::virtio::vsock::{Host, Ports, Refused};

/// Why receiving from the shim failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed, was closed, or a packet was not a valid message.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The first message was a different one.
    #[error("the first message must be Configure")]
    ExpectedConfigure,
    /// `Configure` came with this number of descriptors.
    #[error("Configure must come with {CONFIG_FDS} descriptors, got {0}")]
    DescriptorCount(usize),
}

/// The descriptors that come with `Configure`, in the order of [`nacre_protocol::control::ConfigFd`].
pub struct ConfigFiles {
    /// `/dev/kvm`, open for reading and writing.
    pub kvm: OwnedFd,
    /// The guest kernel (vmlinux).
    pub kernel: File,
    /// The guest's initramfs.
    pub initrd: File,
    /// A memfd for the last bytes of the guest's console.
    pub console_ring: File,
}

/// The VMM's end of the control socket; clones share it.
#[derive(Debug, Clone)]
pub struct Control(Arc<Channel>);

impl Control {
    /// Takes ownership of the socket at descriptor `fd`.
    #[must_use]
    pub fn new(fd: RawFd) -> Self {
        Self(Arc::new(Channel::new(own(fd))))
    }

    /// The vsock device's host side: sends the guest's connections to the shim over this socket.
    #[must_use]
    pub fn connection_sender(&self) -> ConnectionSender {
        ConnectionSender {
            channel: Arc::clone(&self.0),
            log: LimitedLog::new(),
        }
    }

    /// Blocks until the first message arrives, which must be `Configure`.
    ///
    /// # Errors
    /// [`Error`] if another message arrives or descriptors are missing.
    pub fn receive_configuration(&self) -> Result<(Configure, ConfigFiles), Error> {
        let (message, fds) = self.0.receive::<ToVmm>()?;
        let ToVmm::Configure(configure) = message else {
            return Err(Error::ExpectedConfigure);
        };
        let count = fds.len();
        let [kvm, kernel, initrd, console_ring] =
            <[OwnedFd; CONFIG_FDS]>::try_from(fds).map_err(|_| Error::DescriptorCount(count))?;
        let files = ConfigFiles {
            kvm,
            kernel: kernel.into(),
            initrd: initrd.into(),
            console_ring: console_ring.into(),
        };
        Ok((configure, files))
    }

    /// Reports that step `name` of the start is done, with the current time.
    pub fn send_step(&self, name: &str) {
        match Step::now(name) {
            Ok(step) => self.send(&FromVmm::Step(step)),
            Err(error) => eprintln!("nacre-vmm: reading the clock for step {name:?}: {error}"),
        }
    }

    /// Reports that the guest's first instruction is about to run.
    pub fn send_running(&self) {
        self.send(&FromVmm::Running);
    }

    /// Reports that the machine could not be built, and exits with status 1.
    pub fn fail(&self, failure: &Failure) -> ! {
        self.fail_at(failure.step, &failure.error, failure.hint())
    }

    /// Reports that `step` of the start failed, and exits with status 1.
    pub fn fail_at(&self, step: &str, error: &dyn std::error::Error, hint: Option<String>) -> ! {
        eprintln!("nacre-vmm: {step}: {error}");
        self.send(&FromVmm::Failed {
            step: step.to_owned(),
            error: error.to_string(),
            hint,
        });
        exit_now(1)
    }

    /// Reports how the VM ended, and exits with status 0.
    pub fn end(&self, outcome: Outcome) -> ! {
        self.send(&FromVmm::Ended(outcome));
        exit_now(0)
    }

    /// Receives one message and answers it. Call it when the socket is readable.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] if the shim has closed its end; otherwise the message was not valid.
    pub fn handle_message(&self, machine: &Machine) -> Result<(), Error> {
        match self.0.receive::<ToVmm>()?.0 {
            ToVmm::QueryExits => self.send(&FromVmm::Exits(machine.exit_counts())),
            // The descriptors beside it are closed here.
            ToVmm::Configure(_) => eprintln!("nacre-vmm: ignoring a second Configure message"),
        }
        Ok(())
    }

    /// Sending fails if the shim has exited. Then the socket is readable, and the main loop ends the VM.
    fn send(&self, message: &FromVmm) {
        if let Err(error) = self.0.send(message, &[]) {
            eprintln!("nacre-vmm: sending {message:?} to the shim: {error}");
        }
    }
}

/// Sends each connection that the guest opens to the shim, on the vsock device's worker.
#[derive(Debug)]
pub struct ConnectionSender {
    channel: Arc<Channel>,
    log: LimitedLog,
}

impl Host for ConnectionSender {
    /// Refuses the connection if the shim has exited. Blocks while the socket is full; the shim's main task
    /// reads it.
    fn connect(&mut self, ports: Ports, stream: OwnedFd) -> Result<(), Refused> {
        let message = FromVmm::Connection {
            host_port: ports.host,
            guest_port: ports.guest,
        };
        let sent = self.channel.send(&message, &[stream.as_raw_fd()]);
        sent.map_err(|error| {
            self.log.write(|| {
                format!(
                    "sending the guest's connection to port {} to the shim: {error}",
                    ports.host
                )
            });
            Refused
        })
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[allow(unsafe_code, reason = "the shim passes the socket as a descriptor number")]
fn own(fd: RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: --control-fd transfers ownership of this descriptor to the VMM, and main calls this once.
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
    fn the_configuration_arrives_with_its_files() {
        let (shim, vmm) = pair();
        let files: Vec<File> = (0..CONFIG_FDS).map(|_| tempfile::tempfile().unwrap()).collect();
        files[3].set_len(7).unwrap();
        let fds: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
        shim.send(&configure(), &fds).unwrap();
        let (configure, files) = vmm.receive_configuration().unwrap();
        assert_eq!(configure.pod, "p");
        assert_eq!(files.console_ring.metadata().unwrap().len(), 7);
    }

    #[test]
    fn a_configuration_with_missing_descriptors_is_refused() {
        let (shim, vmm) = pair();
        let file = tempfile::tempfile().unwrap();
        shim.send(&configure(), &[file.as_raw_fd()]).unwrap();
        assert!(matches!(
            vmm.receive_configuration(),
            Err(Error::DescriptorCount(1))
        ));
        shim.send(&ToVmm::QueryExits, &[]).unwrap();
        assert!(matches!(
            vmm.receive_configuration(),
            Err(Error::ExpectedConfigure)
        ));
    }

    #[test]
    fn a_guest_connection_is_sent_to_the_shim_or_refused() {
        let (shim, vmm) = pair();
        let mut host = vmm.connection_sender();
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
}
