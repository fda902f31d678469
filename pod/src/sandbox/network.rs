//! The pod's network: the sandbox's part. The links of the pod's namespace are tied while the VMM starts; the
//! namespace is released when the VM has ended. What is tied is on disk before anything is changed, so that
//! the command `delete` can release it, too. See [`crate::network`].
//!
//! A pod without a namespace may get links after Create: `ctr run --cni` and Docker make them in the network
//! namespace of the task's pid, which is the VMM's own. Before the first container is started, they are
//! looked for once, tied, and attached to the VM.
//!
//! ```text
//! Untied ─open, record─▶ Tying ─LinksTied─▶ Tied ─VM ended─▶ Releasing ─NetworkReleased─▶ Untied
//!                          └──VM ended: releases when the child has finished──▲
//! ```

use std::path::PathBuf;

use nacre_protocol::agent::Network;
use nacre_protocol::state::NetworkNamespace;

use super::queue::Event;
use super::{Sandbox, failed};
use crate::error::{Error, StepFailed};
use crate::network::{self, MAX_QUEUE_PAIRS, Namespace, Owner, Tied, has_links};
use crate::pod_spec::Lifetime;
use crate::process_id::ProcessKey;
use crate::{clock, log};

/// The step's name in errors.
const STEP: &str = "set up network";

/// The pod's network.
#[derive(Debug, Default)]
pub(super) struct PodNetwork {
    state: State,
    /// The VMM's own namespace was looked into.
    has_looked: bool,
    /// The init process that is started when links of the VMM's own namespace are attached.
    awaited_by: Option<ProcessKey>,
}

/// What is being done with the pod's network namespace.
#[derive(Debug, Default)]
enum State {
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

impl PodNetwork {
    /// Whether a child works in the namespace.
    pub fn is_busy(&self) -> bool {
        matches!(self.state, State::Tying | State::Releasing)
    }

    /// The guest's part, once.
    pub fn take_guest_s(&mut self) -> Network {
        match &mut self.state {
            State::Tied(network) => std::mem::take(network),
            State::Untied | State::Tying | State::Releasing => Network::default(),
        }
    }
}

impl Sandbox {
    /// Opens the pod's network namespace, if it has one, and records it.
    pub(super) fn open_network(&mut self) -> Result<Option<Namespace>, StepFailed> {
        let Some(path) = self.spec.network_namespace.clone() else {
            return Ok(None);
        };
        self.open_namespace(path).map(Some)
    }

    fn open_namespace(&mut self, path: PathBuf) -> Result<Namespace, StepFailed> {
        let namespace = Namespace::open(&path).map_err(|error| failed(STEP, error, None))?;
        self.pod.network = Some(NetworkNamespace {
            is_tying: true,
            ..namespace.record.clone()
        });
        Ok(namespace)
    }

    /// Ties the links of `namespace`, which is recorded, in a child.
    pub(super) fn tie_links(&mut self, namespace: Namespace) {
        let vcpus = self.sizing.as_ref().map_or(1, |sizing| sizing.vm().vcpus);
        let owner = Owner {
            key: self.identity.key.clone(),
            queue_pairs: vcpus.min(MAX_QUEUE_PAIRS),
        };
        self.network.state = State::Tying;
        let tied = network::tie_links(namespace, owner);
        self.queue
            .send_result(async move { Event::LinksTied(Box::new(tied.await)) });
    }

    /// The links are tied: the VM boots with them, or gets them now if it runs already.
    pub(super) fn links_tied(&mut self, result: Result<Tied, network::Error>) {
        self.network.state = State::Tied(Box::default());
        if let Some(record) = &mut self.pod.network {
            record.is_tying = matches!(result, Err(network::Error::Unfinished(_)));
        }
        let awaited_by = self.network.awaited_by.take();
        let result = result.map_err(|error| failed(STEP, error, None));
        if self.vm.is_none() {
            // It has ended meanwhile.
            return self.release_network();
        }
        match (result, awaited_by) {
            (Ok(tied), awaited_by) => {
                self.recorder.step("links tied", clock::monotonic_ns());
                for ignored in &tied.ignored {
                    log::info(format_args!("the guest does not get {ignored}"));
                }
                match awaited_by {
                    Some(key) => self.attach_links(key, tied),
                    None => {
                        self.network.state = State::Tied(Box::new(tied.network));
                        self.boot(&tied.nics);
                    }
                }
            }
            (Err(failed), Some(key)) => self.links_attached(&key, Err(failed.into())),
            (Err(failed), None) => self.fail_vm(failed),
        }
    }

    /// Looks once for links in the VMM's own network namespace. Returns true if there are any: the init
    /// process `key` is started when the guest has them.
    pub(super) fn awaits_late_links(&mut self, key: &ProcessKey) -> bool {
        let is_possible = self.spec.network_namespace.is_none() && self.spec.lifetime == Lifetime::Container;
        if !is_possible || std::mem::replace(&mut self.network.has_looked, true) {
            return false;
        }
        let Some(pid) = self.vm.as_ref().map(|vm| vm.pid()) else {
            return false;
        };
        match has_links(pid) {
            Ok(false) => return false,
            Ok(true) => {}
            Err(error) => {
                // The VMM has just exited, which ends the container.
                log::warn(format_args!("looking for links of the VMM: {error}"));
                return false;
            }
        }
        self.network.awaited_by = Some(key.clone());
        match self.open_namespace(format!("/proc/{pid}/ns/net").into()) {
            Ok(namespace) => {
                self.write_pod();
                self.tie_links(namespace);
            }
            Err(failed) => {
                let key = key.clone();
                self.queue
                    .send_result(async move { Event::LinksAttached(key, Err(failed.into())) });
            }
        }
        true
    }

    /// Gives the running guest the links that were tied.
    fn attach_links(&mut self, key: ProcessKey, tied: Tied) {
        let (Some(vm), Ok(guest)) = (&self.vm, self.guest()) else {
            return self.links_attached(&key, Err(Error::Closing));
        };
        let attached: Vec<_> = tied
            .nics
            .iter()
            .map(|nic| (nic.link.clone(), vm.attach_net(nic)))
            .collect();
        let network = tied.network;
        self.queue.send_result(async move {
            for (link, attached) in attached {
                if let Err(error) = attached.await {
                    let reason = format!("link {link}: attaching a device to the VM: {error}");
                    return Event::LinksAttached(key, Err(failed(STEP, reason, None).into()));
                }
            }
            let configured = guest.configure_network(&network).await;
            Event::LinksAttached(key, configured.map_err(|error| error.into_error(STEP)))
        });
    }

    /// The guest has its late links, or could not get them: the start goes on, or fails.
    pub(super) fn links_attached(&mut self, key: &ProcessKey, result: Result<(), Error>) {
        match result {
            Ok(()) => {
                self.recorder.step("links attached", clock::monotonic_ns());
                if self.container_of_key(key).is_some() {
                    self.start_in_guest(&key.name.container, "");
                }
            }
            Err(error) => self.started(key, Err(error)),
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
        self.network.state = State::Releasing;
        let key = self.identity.key.clone();
        self.queue
            .send_result(async move { Event::NetworkReleased(network::release(&record, &key).await) });
    }

    /// The namespace is released. If not, it stays recorded, for the command `delete`.
    pub(super) fn network_released(&mut self, result: Result<(), String>) {
        self.network.state = State::Untied;
        match result {
            Ok(()) => self.pod.network = None,
            Err(reason) => log::error(&reason),
        }
        self.remove_cgroup();
    }
}
