//! The devices that every VM has and no boot needs: virtio-rng and virtio-balloon. The VM gets them a little
//! after its first container was started, so that no start waits for them. The guest's random number
//! generator has a seed of the host from its boot on, and there is nothing to give back before a container
//! has run.

use std::mem::replace;
use std::time::Duration;

use super::Sandbox;
use super::queue::Event;
use crate::guest::CallError;
use crate::log;
use crate::vm::RequestError;

/// From the start of the first container. Memory that it frees returns 2 s after the balloon is there.
const DELAY: Duration = Duration::from_secs(2);

impl Sandbox {
    /// A container was started. Has no effect after the first one.
    pub(super) fn plan_common_devices(&mut self) {
        if !replace(&mut self.has_common_devices, true) {
            self.queue.send_after(DELAY, Event::CommonDevicesDue);
        }
    }

    /// Adds the devices to the VM and has the guest find them. A pod that does not get them runs on.
    pub(super) fn attach_common_devices(&self) {
        let (Some(vm), Ok(guest)) = (&self.vm, self.guest()) else {
            return;
        };
        let attached = vm.attach_common();
        tokio::spawn(async move {
            match attached.await {
                Ok(()) => {}
                // The VM's end is logged with its reason.
                Err(RequestError::Ended) => return,
                Err(error) => {
                    return log::warn(format_args!("memory that the guest frees stays with it: {error}"));
                }
            }
            // If the stream is lost or the agent does not answer, the pod ends.
            if let Err(CallError::Answer(code, message)) = guest.find_devices().await {
                log::warn(format_args!(
                    "memory that the guest frees stays with it: {code:?}: {message}"
                ));
            }
        });
    }
}
