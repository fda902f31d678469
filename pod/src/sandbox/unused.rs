//! A pod that nobody uses ends itself. containerd asks for the end of a pod whose Create failed and of one whose last
//! container was deleted; if it was killed just then, it finds a shim without a task after its restart, and keeps it
//! for ever, with the VM and the id. So a pod without a container has a deadline. A pod of the Sandbox API has none: it
//! lives until it is stopped.

use std::time::Duration;

use tokio::sync::oneshot;

use super::Sandbox;
use super::queue::Event;
use crate::log;
use crate::pod_spec::Lifetime;

/// How long the first Create may take to come; containerd calls it as soon as it knows the shim's address. If
/// containerd exits before, its successor knows of no Create: then the deadline is [`NEXT_CALL`].
pub(super) const FIRST_CREATE: Duration = Duration::from_secs(60);
/// How long the next call may take to come after a Create that failed, or after the last Delete: as long as that.
pub(super) const NEXT_CALL: Duration = Duration::from_secs(10);

impl Sandbox {
    /// Gives a pod without a container until `deadline` for the next Create.
    pub(super) fn limit_unused(&self, deadline: Duration) {
        if self.spec.lifetime != Lifetime::SandboxApi && self.is_unused() {
            self.queue
                .send_after(deadline, Event::UnusedFor(deadline, self.creations));
        }
    }

    fn is_unused(&self) -> bool {
        self.containers.is_empty() && self.deleting.is_empty() && self.shutdown.is_none()
    }

    /// The deadline has passed; there had been `creations` calls of Create when it began.
    pub(super) fn unused_for(&mut self, deadline: Duration, creations: u64) {
        if creations != self.creations || !self.is_unused() {
            return;
        }
        let seconds = deadline.as_secs();
        log::warn(format_args!(
            "the pod has had no container for {seconds} s, and nobody asks for its end: it ends"
        ));
        self.shut_down(true, oneshot::channel().0);
    }
}
