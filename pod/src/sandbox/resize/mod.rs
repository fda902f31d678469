//! The size of the pod's VM while it lives. It changes when a container comes, when limits are updated, and
//! when the guest runs short of memory ([`demand`]); [`crate::size`] decides how, [`job`] does it. One change at
//! a time: further ones wait in a list. A container that comes is started when the VM has its size. [`record`]
//! writes the size to disk.

mod demand;
mod job;
mod record;

use std::collections::VecDeque;

use nacre_protocol::spec;
use nacre_protocol::state::PodSize as Recorded;
use serde_json::Value;
use tokio::sync::watch;

use self::demand::Demands;
use self::job::{Given, Job, NewLimits};
use self::record::Writes;
use super::queue::Event;
use super::{Sandbox, log_ignored_fields};
use crate::container::{Reply, TaskState, answer};
use crate::error::Error;
use crate::log;
use crate::process_id::ProcessId;
use crate::size::{Limits, PodSize, SizeHints, Target, VmSize};

/// Most changes that wait.
const MAX_WAITING: usize = 64;

/// Why the VM's size is to change.
#[derive(Debug)]
pub enum Change {
    /// Containers have come.
    Fit,
    /// The guest needs this much memory besides that at boot, MiB.
    Demand(u32),
    /// The limits of a container are updated by `linux.resources`.
    Update(String, Value, Reply<()>),
    /// The pod's creator says what all containers may use together from now on.
    Pod(SizeHints, Reply<()>),
}

/// How a change ended: what the VM has been given, and why no more.
pub type Resized = (Given, Result<(), Error>);

/// Whether the VM has the size that the containers need.
#[derive(Debug, Clone)]
pub enum Fit {
    /// A change is underway.
    Changing,
    /// It has.
    Fits,
    /// It could not get it.
    Failed(Error),
}

/// The size of a pod's VM.
#[derive(Debug)]
pub struct Sizing {
    needed: PodSize,
    given: Given,
    /// Memory that the guest has plugged in, as far as it was reported, MiB.
    plugged_mib: u32,
    fit: watch::Sender<Fit>,
    waiting: VecDeque<Change>,
    /// The change that is underway.
    current: Option<Change>,
    /// What the guest asks for.
    demands: Demands,
    /// When the size was written to disk.
    writes: Writes,
    /// The VM can't get more memory than this, MiB: plugging has failed.
    stuck_at: Option<u32>,
}

impl Sizing {
    /// What the VM boots with, and the most that it can have.
    pub(super) fn vm(&self) -> VmSize {
        *self.needed.vm()
    }

    pub(super) fn new(needed: PodSize) -> Self {
        let vm = *needed.vm();
        Self {
            given: Given {
                memory_mib: vm.boot_mib,
                ceiling_mib: vm.boot_mib,
                vcpus: vm.vcpus,
            },
            needed,
            plugged_mib: 0,
            fit: watch::Sender::new(Fit::Fits),
            waiting: VecDeque::new(),
            current: None,
            demands: Demands::default(),
            writes: Writes::default(),
            stuck_at: None,
        }
    }

    /// What the VM has, for the pod's state on disk.
    pub(super) fn recorded(&self) -> Recorded {
        let vm = self.needed.vm();
        Recorded {
            vcpus: self.given.vcpus,
            max_vcpus: vm.max_vcpus,
            boot_mib: vm.boot_mib,
            memory_mib: vm.boot_mib.saturating_add(self.plugged_mib),
            max_mib: vm.max_mib,
        }
    }

    /// Whether the VM has the size that the containers need, as it changes.
    pub(super) fn fit(&self) -> watch::Receiver<Fit> {
        self.fit.subscribe()
    }

    /// What the VM should have if it needs `memory_mib`.
    fn target(&self, needed: &PodSize, memory_mib: u32) -> Target {
        let target = needed.target();
        let ceiling_mib = match self.stuck_at {
            Some(stuck) => target.ceiling_mib.min(stuck.max(target.memory_mib)),
            None => target.ceiling_mib,
        };
        Target {
            memory_mib: needed
                .vm()
                .at_least(memory_mib)
                .clamp(target.memory_mib, ceiling_mib),
            ceiling_mib,
            ..target
        }
    }
}

impl Sandbox {
    /// Counts the limits of container `id`, which is being created.
    pub(super) fn add_to_size(&mut self, id: &str, limits: Limits) -> Result<(), Error> {
        if self.is_pause(id) {
            // It has no process.
            return Ok(());
        }
        let Some(sizing) = &mut self.sizing else {
            return Ok(());
        };
        sizing.needed.set(id, limits)?;
        self.fit_size();
        Ok(())
    }

    /// Container `id` is gone. The VM keeps its size until the next change: another one may follow.
    pub(super) fn remove_from_size(&mut self, id: &str) {
        if let Some(sizing) = &mut self.sizing {
            sizing.needed.remove(id);
        }
    }

    /// Gives the VM the size that the containers need, once the agent is ready.
    pub(super) fn fit_size(&mut self) {
        let Some(sizing) = &mut self.sizing else { return };
        // What the guest has not confirmed is tried again with the next container.
        let has_failed = matches!(*sizing.fit.borrow(), Fit::Failed(_));
        if (sizing.is_given() && !has_failed) || sizing.fit_waits() {
            return self.next_resize();
        }
        sizing.fit.send_replace(Fit::Changing);
        sizing.waiting.push_back(Change::Fit);
        self.next_resize();
    }

    pub(super) fn update(&mut self, id: &str, resources: &[u8], reply: Reply<()>) {
        let checked = self.check_update(id, resources).and_then(|mut resources| {
            self.update_cpus(id, &mut resources)?;
            Ok(resources)
        });
        match checked {
            // No process of its own: its limits are those of the pod.
            Ok(resources) if self.is_pause(id) => {
                self.change_size(Change::Pod(SizeHints::of_container(&resources), reply));
            }
            Ok(resources) => self.change_size(Change::Update(id.to_owned(), resources, reply)),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn check_update(&self, id: &str, resources: &[u8]) -> Result<Value, Error> {
        let container = self.container(id)?;
        match container.lifecycle.init().state {
            TaskState::Created | TaskState::Starting | TaskState::Running => {}
            TaskState::Creating | TaskState::Exiting | TaskState::Stopped => {
                return Err(container.refuse("updated"));
            }
        }
        self.guest()?;
        let checked = spec::check_resources(resources)?;
        log_ignored_fields(&ProcessId::init(id), checked.ignored());
        Ok(checked.value().clone())
    }

    /// A pod whose guest still boots is changed once it has.
    pub(super) fn update_pod(&mut self, hints: SizeHints, reply: Reply<()>) {
        self.change_size(Change::Pod(hints, reply));
    }

    fn change_size(&mut self, change: Change) {
        let Some(sizing) = &mut self.sizing else {
            return refuse(change, Error::Closing);
        };
        if sizing.waiting.len() >= MAX_WAITING {
            let reason = format!("{MAX_WAITING} changes of the pod's size are waiting already");
            return refuse(change, Error::Refused(reason));
        }
        sizing.waiting.push_back(change);
        self.next_resize();
    }

    /// Begins the next change, unless one is underway or the agent is not ready.
    pub(super) fn next_resize(&mut self) {
        let (Ok(guest), Some(vm)) = (self.guest(), &self.vm) else {
            return self.refuse_resizes();
        };
        let memory = vm.memory_control();
        let Some(sizing) = &mut self.sizing else { return };
        while sizing.current.is_none()
            && let Some(change) = sizing.waiting.pop_front()
        {
            match sizing.plan(&change) {
                Ok((to, limits)) => {
                    let job = Job {
                        guest: guest.clone(),
                        memory: memory.clone(),
                        vm: sizing.vm(),
                        from: sizing.given,
                        to,
                        must_confirm: matches!(change, Change::Fit),
                        limits,
                    };
                    sizing.current = Some(change);
                    self.queue
                        .send_result(async move { Event::Resized(Box::new(job.run().await)) });
                }
                Err(error) => refuse(change, error),
            }
        }
    }

    /// If the VM has ended, nothing waits for it any more.
    fn refuse_resizes(&mut self) {
        if let (Err(error @ Error::Step(_)), Some(sizing)) = (self.guest(), &mut self.sizing) {
            sizing.end(&error);
        }
    }

    /// A change has ended.
    pub(super) fn resized(&mut self, (given, result): Resized) {
        let Some(sizing) = &mut self.sizing else { return };
        let before = std::mem::replace(&mut sizing.given, given);
        if result.is_ok() {
            // The guest has confirmed growth. It gives memory back later.
            let plugged_mib = sizing.needed.vm().besides_boot(given.memory_mib);
            sizing.plugged_mib = sizing.plugged_mib.max(plugged_mib);
        }
        let change = sizing.current.take();
        // Before the caller is answered, who may look at it.
        self.record_size();
        if let Err(error) = &result {
            log::warn(format_args!("resizing the VM: {error}"));
        }
        if let Some(change) = change {
            self.end_change(change, before, result);
        }
        self.next_resize();
        self.follow_memory();
    }

    /// Says what follows from the end of `change`, before which the VM had been given `before`.
    fn end_change(&mut self, change: Change, before: Given, result: Result<(), Error>) {
        let Some(sizing) = &mut self.sizing else { return };
        match change {
            Change::Fit => sizing.fitted(result),
            Change::Update(id, resources, reply) => {
                if result.is_ok() && self.containers.contains_key(&id) {
                    sizing.update(&id, &resources);
                }
                answer(reply, result);
                // If the guest has refused the limits, the VM grew for nothing.
                self.fit_size();
            }
            Change::Pod(hints, reply) => {
                let set = result.and_then(|()| Ok(sizing.needed.set_pod(Limits::from(hints))?));
                answer(reply, set);
                self.fit_size();
            }
            Change::Demand(_) if result.is_err() => {
                sizing.stuck_at = Some(before.memory_mib);
                sizing.waiting.push_back(Change::Fit);
            }
            Change::Demand(_) => {}
        }
    }
}

impl Sizing {
    /// Whether the VM has been given what the containers need. The guest learns of its ceiling when it is first asked
    /// for its need.
    fn is_given(&self) -> bool {
        let (given, target) = (self.given, self.target(&self.needed, self.given.memory_mib));
        (target.memory_mib, target.vcpus) == (given.memory_mib, given.vcpus)
    }

    /// Whether a [`Change::Fit`] waits.
    fn fit_waits(&self) -> bool {
        self.waiting.iter().any(|change| matches!(change, Change::Fit))
    }

    /// A [`Change::Fit`] has ended. Another one may wait, for a container that came meanwhile; it is not needed if the
    /// VM has got what it asks for.
    fn fitted(&mut self, result: Result<(), Error>) {
        if result.is_ok() && self.is_given() {
            self.waiting.retain(|change| !matches!(change, Change::Fit));
        }
        if self.fit_waits() {
            return;
        }
        self.fit.send_replace(match result {
            Ok(()) => Fit::Fits,
            Err(error) => Fit::Failed(error),
        });
    }

    /// Refuses all changes that wait, for `error`.
    fn end(&mut self, error: &Error) {
        for change in self.waiting.drain(..) {
            if matches!(change, Change::Fit) {
                self.fit.send_replace(Fit::Failed(error.clone()));
            }
            refuse(change, error.clone());
        }
    }

    /// What the VM is to have after `change`, and the limits that the guest must apply for it.
    fn plan(&self, change: &Change) -> Result<(Given, Option<NewLimits>), Error> {
        match change {
            Change::Fit => Ok((self.target(&self.needed, self.given.memory_mib), None)),
            Change::Demand(plugged_mib) => {
                let wanted_mib = self.needed.vm().boot_mib.saturating_add(*plugged_mib);
                Ok((self.target(&self.needed, wanted_mib), None))
            }
            Change::Pod(hints, _) => {
                let mut needed = self.needed.clone();
                needed.set_pod(Limits::from(*hints))?;
                Ok((self.target(&needed, self.given.memory_mib), None))
            }
            Change::Update(id, resources, _) => {
                let mut needed = self.needed.clone();
                updated(&mut needed, id, resources)?;
                let to = self.target(&needed, self.given.memory_mib);
                let limits = NewLimits {
                    container: id.clone(),
                    resources: resources.to_string().into_bytes(),
                };
                Ok((to, Some(limits)))
            }
        }
    }

    /// The limits of container `id` have been updated.
    fn update(&mut self, id: &str, resources: &Value) {
        if let Err(error) = updated(&mut self.needed, id, resources) {
            log::error(format_args!("{id}: {error}"));
        }
    }
}

/// Updates the limits of container `id` in `needed`.
fn updated(needed: &mut PodSize, id: &str, resources: &Value) -> Result<(), crate::size::TooLarge> {
    let limits = needed.limits(id).updated(resources);
    if limits == needed.limits(id) {
        return Ok(());
    }
    needed.set(id, limits)?;
    needed.forget_pod();
    Ok(())
}

fn refuse(change: Change, error: Error) {
    match change {
        Change::Update(_, _, reply) | Change::Pod(_, reply) => answer(reply, Err(error)),
        Change::Fit | Change::Demand(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Host;

    /// A pod without limits, whose VM has 256 of 512 MiB.
    fn sizing() -> Sizing {
        let vm = VmSize {
            boot_mib: 256,
            max_mib: 512,
            vcpus: 1,
            most_vcpus: 1,
            max_vcpus: 1,
        };
        let host = Host {
            cpus: 1,
            all_cpus: 1,
            memory_mib: 1024,
        };
        Sizing::new(PodSize::new(vm, Limits::default(), host))
    }

    #[test]
    fn the_end_of_the_vm_ends_the_wait_for_its_size() {
        let mut sizing = sizing();
        let fit = sizing.fit();
        sizing.fit.send_replace(Fit::Changing);
        sizing.waiting.push_back(Change::Fit);
        sizing.end(&Error::Closing);
        assert!(matches!(*fit.borrow(), Fit::Failed(Error::Closing)));
        assert!(sizing.waiting.is_empty());
    }

    #[test]
    fn a_container_that_comes_during_a_change_waits_for_its_own() {
        let mut sizing = sizing();
        let fit = sizing.fit();
        let come = |sizing: &mut Sizing| {
            sizing.fit.send_replace(Fit::Changing);
            sizing.waiting.push_back(Change::Fit);
        };
        come(&mut sizing);
        // The change before it has brought what it needs.
        sizing.fitted(Ok(()));
        assert!(matches!(*fit.borrow(), Fit::Fits) && sizing.waiting.is_empty());
        let limits = Limits::from(SizeHints {
            memory_limit: Some(300 << 20),
            ..SizeHints::default()
        });
        sizing.needed.set("more", limits).unwrap();
        for result in [Ok(()), Err(Error::Closing)] {
            sizing.waiting.clear();
            come(&mut sizing);
            sizing.fitted(result);
            assert!(matches!(*fit.borrow(), Fit::Changing) && sizing.waiting.len() == 1);
        }
        sizing.waiting.clear();
        sizing.fitted(Err(Error::Closing));
        assert!(matches!(*fit.borrow(), Fit::Failed(Error::Closing)));
    }
}
