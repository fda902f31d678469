//! The VMM's end of the control socket to the shim ([`nacre_protocol::control`] has the messages). Used by
//! the main thread; the vsock device's worker sends the guest's connections over the same socket, since each
//! packet is one whole message.

mod connections;
pub(crate) mod devices;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use nacre_protocol::control::{
    Answer, Channel, Configure, Descriptors, DeviceConfig, Error as ChannelError, ErrorText, FromVmm,
    Lenient, Outcome, Request, Step, ToVmm, check_pluggable,
};
use nacre_protocol::stream_table::StreamTable;
use nacre_protocol::text::printable;

use crate::machine::{Failure, Machine, PlugError};
use crate::process::exit_now;
use crate::virtio::mem::OnReached;
use connections::ConnectionSender;

/// Longest build id of a shim in an error, bytes.
const MAX_BUILD_ID: usize = 100;

/// A message of the shim, in which a request may be unknown.
type Received = ToVmm<Lenient<Request>>;

/// Why receiving from the shim failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed, was closed, or a packet was not a valid message.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The first message was a different one.
    #[error("the first message must be Configure")]
    ExpectedConfigure,
    /// Shim and VMM come from different builds.
    #[error("the shim is build {shim}, nacre-vmm is build {vmm}: install both from one build")]
    BuildMismatch {
        /// The shim's build id.
        shim: String,
        /// This program's build id.
        vmm: &'static str,
    },
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

    /// The vsock device's host side: sends those of the guest's connections to the shim, over this socket,
    /// that `expected` contains.
    #[must_use]
    pub fn connection_sender(&self, expected: StreamTable) -> ConnectionSender {
        ConnectionSender::new(Arc::clone(&self.0), expected)
    }

    /// Reports to the shim that as much memory is plugged as it asked for, in bytes.
    #[must_use]
    pub fn memory_reporter(&self) -> OnReached {
        let control = self.clone();
        Box::new(move |bytes| control.send(&FromVmm::MemoryPlugged { mib: mib(bytes) }))
    }

    /// Blocks until the first message arrives, which must be `Configure`. Compares the builds before it looks
    /// at any other field, because a shim of another build may send other fields.
    ///
    /// # Errors
    /// [`Error`] if another message arrives, or the shim is of another build.
    pub fn receive_configuration(&self) -> Result<(Configure, Descriptors), Error> {
        let (message, fds) = self.0.receive::<serde_json::Value>()?;
        let build_id = message.pointer("/Configure/build_id");
        if let Some(shim) = build_id.and_then(|id| id.as_str())
            && shim != nacre_protocol::BUILD_ID
        {
            return Err(Error::BuildMismatch {
                shim: printable(shim, MAX_BUILD_ID),
                vmm: nacre_protocol::BUILD_ID,
            });
        }
        match serde_json::from_value::<Received>(message).map_err(ChannelError::Json)? {
            ToVmm::Configure(configure) => Ok((configure, Descriptors::new(fds))),
            ToVmm::Request { .. } => Err(Error::ExpectedConfigure),
        }
    }

    /// Reports that step `name` of the start is done, with the current time.
    pub fn send_step(&self, name: &str) {
        match Step::now(name) {
            Ok(step) => self.send(&FromVmm::Step(step)),
            Err(error) => eprintln!("nacre-vmm: reading the clock for step {name:?}: {error}"),
        }
    }

    /// Reports that the guest boots, though the configuration has a template, and why. Another VMM can use it if
    /// `is_transient`.
    pub fn send_template_refused(&self, reason: &str, is_transient: bool) {
        self.send(&FromVmm::TemplateRefused {
            reason: reason.to_owned(),
            is_transient,
        });
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

    /// Receives one message. A request is carried out and answered; one that is not known is answered by an
    /// error, and the VM goes on. Call it when the socket is readable.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] if the shim has closed its end; otherwise the message was not valid.
    pub fn handle_message(&self, machine: &mut Machine) -> Result<(), Error> {
        let (message, fds) = self.0.receive::<Received>()?;
        match message {
            ToVmm::Request { id, request } => {
                let descriptors = Descriptors::new(fds);
                let control = self.clone();
                let answer = move |result| control.send(&FromVmm::Answer { id, result });
                match request.0 {
                    Ok(request) => self.carry_out(request, descriptors, machine, answer),
                    Err(error) => answer(Err(error)),
                }
            }
            // The descriptors beside it are closed here.
            ToVmm::Configure(_) => eprintln!("nacre-vmm: ignoring a second Configure message"),
        }
        Ok(())
    }

    /// Carries out `request`, on the main thread, and passes the result to `answer`, now or later.
    fn carry_out(
        &self,
        request: Request,
        descriptors: Descriptors,
        machine: &mut Machine,
        answer: impl FnOnce(Result<Answer, ErrorText>) + 'static,
    ) {
        if !matches!(request, Request::Attach { .. })
            && let Err(error) = descriptors.finish()
        {
            return answer(Err(ErrorText::new(error)));
        }
        let done = Ok(Answer::Done);
        let result = match request {
            Request::Exits => Ok(Answer::Exits(machine.exit_counts())),
            Request::Pause => machine.pause().map_err(ErrorText::new).and(done),
            Request::Resume => machine.resume().map_err(ErrorText::new).and(done),
            Request::Attach { device } => self.attach(device, descriptors, machine),
            Request::AttachCommon => machine.attach_common().map_err(ErrorText::new).and(done),
            Request::Detach { slot } => machine.detach(slot).map_err(ErrorText::new).and(done),
            Request::PlugMemory { mib } => {
                let on_plugged =
                    move |result: Result<_, PlugError>| answer(result.map_err(ErrorText::new).and(done));
                return machine.plug_memory(mib, Box::new(on_plugged));
            }
            Request::Memory => machine
                .plugged_memory()
                .map_err(ErrorText::new)
                .map(|sizes| Answer::Memory {
                    requested_mib: mib(sizes.requested),
                    plugged_mib: mib(sizes.plugged),
                }),
        };
        answer(result);
    }

    /// Adds a device to the running VM.
    fn attach(
        &self,
        device: DeviceConfig,
        mut descriptors: Descriptors,
        machine: &mut Machine,
    ) -> Result<Answer, ErrorText> {
        check_attached(&device, machine)?;
        let device = devices::builder(device, &mut descriptors, self).map_err(ErrorText::new)?;
        descriptors.finish().map_err(ErrorText::new)?;
        let slot = machine.attach(device).map_err(ErrorText::new)?;
        Ok(Answer::Attached { slot })
    }

    /// Sending fails if the shim has exited. Then the socket is readable, and the main loop ends the VM.
    fn send(&self, message: &FromVmm) {
        if let Err(error) = self.0.send(message, &[]) {
            eprintln!("nacre-vmm: sending {message:?} to the shim: {error}");
        }
    }
}

/// Whether `device` may be added to the running VM.
fn check_attached(device: &DeviceConfig, machine: &Machine) -> Result<(), ErrorText> {
    match device {
        DeviceConfig::Net { .. } | DeviceConfig::Blk { .. } => Ok(()),
        DeviceConfig::Mem { max_mib } => {
            check_pluggable(*max_mib).map_err(ErrorText::new)?;
            if machine.plugged_memory().is_ok() {
                return Err(ErrorText::new("the VM has a device to plug memory (mem) already"));
            }
            Ok(())
        }
        DeviceConfig::Vsock { .. } | DeviceConfig::Fs { .. } => Err(ErrorText::new(
            "only a network device, a disk or a device to plug memory (mem) can be attached to a running VM",
        )),
    }
}

fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
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
    use nacre_protocol::control::socket_pair;
    use std::fs::File;
    use std::os::fd::{AsRawFd as _, IntoRawFd as _};

    fn pair() -> (Channel, Control) {
        let (shim, vmm) = socket_pair().unwrap();
        (Channel::new(shim), Control::new(vmm.into_raw_fd()))
    }

    fn configure() -> serde_json::Value {
        serde_json::json!({"Configure": {
            "build_id": nacre_protocol::BUILD_ID, "pod": "p", "memory_mib": 1, "vcpus": 1, "max_vcpus": 1,
            "extra_cmdline": "", "console_to_stderr": false, "kvm": 0, "kernel": 1, "initrd": 2,
            "console_ring": 3, "devices": [{"Fs": {"tag": "t"}}],
        }})
    }

    #[test]
    fn the_configuration_arrives_with_its_descriptors() {
        let (shim, vmm) = pair();
        let files: Vec<File> = (0..4).map(|_| tempfile::tempfile().unwrap()).collect();
        files[3].set_len(7).unwrap();
        let fds: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
        shim.send(&configure(), &fds).unwrap();
        let (configure, mut fds) = vmm.receive_configuration().unwrap();
        let console = File::from(fds.take("console_ring", configure.console_ring).unwrap());
        assert_eq!(console.metadata().unwrap().len(), 7);
    }

    #[test]
    fn the_builds_are_compared_before_anything_else() {
        let (shim, vmm) = pair();
        let other = serde_json::json!({"Configure": {"build_id": "0.0.1", "quux": 1}});
        shim.send(&other, &[]).unwrap();
        let error = vmm.receive_configuration().unwrap_err().to_string();
        assert!(
            error.contains("0.0.1") && error.contains(nacre_protocol::BUILD_ID),
            "{error}"
        );
    }

    #[test]
    fn a_first_message_that_is_not_a_configuration_is_refused() {
        let (shim, vmm) = pair();
        let request = ToVmm::Request {
            id: 1,
            request: Request::Exits,
        };
        shim.send(&request, &[]).unwrap();
        assert!(matches!(
            vmm.receive_configuration(),
            Err(Error::ExpectedConfigure)
        ));
        for malformed in [
            serde_json::json!({"Configure": {"build_id": nacre_protocol::BUILD_ID}}),
            serde_json::json!({"Configure": {"build_id": 1}}),
            serde_json::json!({"Configure": []}),
            serde_json::json!([]),
        ] {
            shim.send(&malformed, &[]).unwrap();
            let error = vmm.receive_configuration();
            assert!(
                matches!(error, Err(Error::Channel(ChannelError::Json(_)))),
                "{error:?}"
            );
        }
    }
}
