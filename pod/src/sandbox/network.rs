//! The pod's network: the sandbox's part. The links of the pod's namespace are tied while the VMM starts; the
//! namespace is released when the VM has ended. What is tied is on disk before anything is changed, so that
//! the command `delete` can release it, too. See [`crate::network`].
//!
//! ```text
//! Untied ─open, record─▶ Tying ─LinksTied─▶ Tied ─VM ended─▶ Releasing ─NetworkReleased─▶ Untied
//!                          └──VM ended: releases when the child has finished──▲
//! ```

use nacre_protocol::agent::Network;

use super::queue::Event;
use super::{Sandbox, failed};
use crate::error::StepFailed;
use crate::network::{self, MAX_QUEUE_PAIRS, Namespace, Owner, Tied};
use crate::{clock, log};

/// What is being done with the pod's network namespace.
#[derive(Debug, Default)]
pub(super) enum State {
    /// Nothing of the pod is in it, or there is none.
    #[default]
    Untied,
    /// A child makes taps.
    Tying,
    /// Its links are tied; the guest's part until the agent has it.
    Tied(Box<Network>),
    /// A child removes what was made.
    Releasing,
}

impl State {
    /// Whether a child works in the namespace.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Tying | Self::Releasing)
    }

    /// The guest's part, once.
    pub fn take_guest_s(&mut self) -> Network {
        match self {
            Self::Tied(network) => std::mem::take(network),
            Self::Untied | Self::Tying | Self::Releasing => Network::default(),
        }
    }
}

impl Sandbox {
    /// Opens the pod's network namespace, if it has one, and records it.
    pub(super) fn open_network(&mut self) -> Result<Option<Namespace>, StepFailed> {
        let Some(path) = &self.spec.network_namespace else {
            return Ok(None);
        };
        let namespace = Namespace::open(path).map_err(|error| failed("set up network", error, None))?;
        self.pod.network = Some(namespace.record.clone());
        Ok(Some(namespace))
    }

    /// Ties the links of `namespace`, which is recorded, in a child.
    pub(super) fn tie_links(&mut self, namespace: Namespace) {
        let owner = self.owner();
        self.network = State::Tying;
        self.queue.send_result(async move {
            Event::LinksTied(Box::new(network::tie_links(namespace, owner).await))
        });
    }

    fn owner(&self) -> Owner {
        let vcpus = self.sizing.as_ref().map_or(1, |sizing| sizing.vm().vcpus);
        Owner {
            key: self.identity.key.clone(),
            queue_pairs: vcpus.min(MAX_QUEUE_PAIRS),
        }
    }

    /// The links are tied: the VM boots with them.
    pub(super) fn links_tied(&mut self, result: Result<Tied, network::Error>) {
        self.network = State::Tied(Box::default());
        match result {
            Ok(tied) if self.vm.is_some() => {
                self.recorder.step("links tied", clock::monotonic_ns());
                for ignored in &tied.ignored {
                    log::info(format_args!("the guest does not get {ignored}"));
                }
                self.network = State::Tied(Box::new(tied.network));
                self.boot(&tied.nics);
            }
            // The VM has ended meanwhile.
            Ok(_) => self.release_network(),
            Err(error) => {
                self.fail_vm(failed("set up network", error, None));
                if self.vm.is_none() {
                    self.release_network();
                }
            }
        }
    }

    /// The VM has ended: leaves the namespace as it was found.
    pub(super) fn release_network(&mut self) {
        // The child that ties links reports its end.
        if self.network.is_busy() {
            return;
        }
        let Some(record) = self.pod.network.clone() else {
            return;
        };
        self.network = State::Releasing;
        let key = self.identity.key.clone();
        self.queue
            .send_result(async move { Event::NetworkReleased(network::release(&record, &key).await) });
    }

    /// The namespace is released. If not, it stays recorded, for the command `delete`.
    pub(super) fn network_released(&mut self, result: Result<(), String>) {
        self.network = State::Untied;
        match result {
            Ok(()) => self.pod.network = None,
            Err(reason) => log::error(&reason),
        }
    }
}
