//! Calls about the pod itself, by a door that makes a pod before its first container (containerd's Sandbox
//! API). The VM then starts with Create and not with the shim, and lives until Stop, Shutdown or its own end.
//! Called by `calls`; `vm_life` reports the VM's end.

use super::actions::lost;
use super::progress::ready;
use super::queue::Event;
use super::{Sandbox, failed};
use crate::clock;
use crate::container::{Reply, answer};
use crate::error::Error;
use crate::exit::Exit;
use crate::guest::CgroupFiles;
use crate::pod_files;
use crate::pod_spec::{Lifetime, PodSpec};
use crate::size::SizeHints;

/// A call about the pod itself. Start, Wait, Stats and Update are refused before Create; all are refused if the pod was
/// started for a container.
#[derive(Debug)]
pub enum PodCall {
    /// Starts the VM; answers when the VMM runs, while the guest boots.
    Create(Box<PodSpec>, Reply<()>),
    /// Answers when the pod can take containers.
    Start(Reply<PodView>),
    /// Reports the pod's state.
    View(Reply<PodView>),
    /// Answers when the pod has ended.
    Wait(Reply<Exit>),
    /// Ends the VM; answers when it has ended. The shim goes on, so that the tasks can be deleted. A pod that
    /// was stopped can't be created any more.
    Stop(Reply<()>),
    /// Reads this host's counters of the pod.
    Stats(Reply<CgroupFiles>),
    /// Changes what all containers of the pod may use together.
    Update(SizeHints, Reply<()>),
}

impl PodCall {
    /// For the log.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Create(..) => "Create",
            Self::Start(_) => "Start",
            Self::View(_) => "View",
            Self::Wait(_) => "Wait",
            Self::Stop(_) => "Stop",
            Self::Stats(_) => "Stats",
            Self::Update(..) => "Update",
        }
    }
}

/// How far a pod has come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum PodPhase {
    /// Create was not called.
    #[default]
    Absent,
    /// The VM was started.
    Created,
    /// Start was answered: the pod takes containers.
    Ready,
    /// The VM has ended.
    Ended,
}

impl PodPhase {
    /// For an error.
    fn name(self) -> &'static str {
        match self {
            Self::Absent => "not created",
            Self::Created => "created",
            Self::Ready => "running",
            Self::Ended => "stopped",
        }
    }
}

/// A pod, as View reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodView {
    /// The VMM's host pid, whose namespaces in /proc stand for the pod's; 0 if it does not run.
    pub pid: u32,
    /// How far it has come.
    pub phase: PodPhase,
    /// When Create was called, nanoseconds since the epoch.
    pub created_ns: i64,
    /// How it ended.
    pub exit: Option<Exit>,
}

/// What the sandbox remembers of these calls.
#[derive(Debug, Default)]
pub struct PodLife {
    phase: PodPhase,
    created_ns: i64,
    exit: Option<Exit>,
    waiting: Vec<Reply<Exit>>,
    stopping: Vec<Reply<()>>,
}

impl Sandbox {
    pub(super) fn pod_call(&mut self, call: PodCall) {
        match call {
            PodCall::Create(spec, reply) => answer(reply, self.create_pod(*spec)),
            PodCall::Start(reply) => self.start_pod(reply),
            PodCall::View(reply) => answer(reply, self.has_pod_calls().map(|()| self.view_pod())),
            PodCall::Wait(reply) => self.wait_pod(reply),
            PodCall::Stop(reply) => self.stop_pod(reply),
            PodCall::Stats(reply) => answer(reply, self.pod_counters()),
            PodCall::Update(hints, reply) => match self.has_pod_calls() {
                Ok(()) if self.pod_life.phase == PodPhase::Absent => {
                    answer(reply, Err(self.refuse_pod("updated")));
                }
                Ok(()) => self.update_pod(hints, reply),
                Err(error) => answer(reply, Err(error)),
            },
        }
    }

    /// Whether the VM starts with [`PodCall::Create`], which was not called yet.
    pub(super) fn awaits_pod(&self) -> bool {
        self.spec.lifetime == Lifetime::SandboxApi && self.pod_life.phase == PodPhase::Absent
    }

    /// Whether the VM outlives its containers because the pod was not stopped.
    pub(super) fn outlives_containers(&self) -> bool {
        self.spec.lifetime == Lifetime::SandboxApi
    }

    /// Whether the VM was started for container `id` and ends with it. A pod that was made before its first
    /// container has none such, whatever its containers are called.
    pub(super) fn owns_vm(&self, id: &str) -> bool {
        id == self.identity.id && self.spec.lifetime != Lifetime::SandboxApi
    }

    /// Refuses to make a container before the pod.
    pub(super) fn refuse_early_container(&self) -> Result<(), Error> {
        if self.awaits_pod() {
            return Err(self.refuse_pod("joined by a container"));
        }
        Ok(())
    }

    fn has_pod_calls(&self) -> Result<(), Error> {
        if self.spec.lifetime == Lifetime::SandboxApi {
            return Ok(());
        }
        // Its bundle had a config.json at `start`.
        Err(Error::PodState {
            state: "that of a container",
            wanted: "used without one",
        })
    }

    fn refuse_pod(&self, wanted: &'static str) -> Error {
        Error::PodState {
            state: self.pod_life.phase.name(),
            wanted,
        }
    }

    fn create_pod(&mut self, spec: PodSpec) -> Result<(), Error> {
        self.has_pod_calls()?;
        if self.closing {
            return Err(Error::Closing);
        }
        if self.pod_life.phase != PodPhase::Absent {
            return Err(self.refuse_pod("created"));
        }
        let hostname = spec.guest_hostname();
        let files = pod_files::write(
            &self.identity.directory(),
            &hostname,
            spec.resolv_conf.as_deref(),
            spec.users.as_ref(),
        )
        .map_err(|error| failed("write the pod's files", error, None))?;
        self.spec = PodSpec {
            lifetime: Lifetime::SandboxApi,
            hostname: Some(hostname),
            files,
            ..spec
        };
        self.pod_life.phase = PodPhase::Created;
        self.pod_life.created_ns = clock::realtime_ns();
        self.recorder.step("create called", clock::monotonic_ns());
        self.start_vm().map_err(|reason| {
            self.vm_ended(reason.clone());
            reason.into()
        })
    }

    fn start_pod(&mut self, reply: Reply<PodView>) {
        let begun = self.has_pod_calls().and_then(|()| match self.pod_life.phase {
            PodPhase::Created | PodPhase::Ended => Ok(()),
            PodPhase::Absent | PodPhase::Ready => Err(self.refuse_pod("started")),
        });
        if let Err(error) = begun {
            return answer(reply, Err(error));
        }
        let mut progress = self.progress.subscribe();
        let queue = self.queue.clone();
        tokio::spawn(async move {
            match ready(&mut progress).await {
                Ok(_) => queue.send(Event::PodReady(reply)).await,
                Err(error) => answer(reply, Err(error)),
            }
        });
    }

    /// The guest's agent is ready: answers [`PodCall::Start`].
    pub(super) fn pod_ready(&mut self, reply: Reply<PodView>) {
        if self.pod_life.phase == PodPhase::Created {
            self.pod_life.phase = PodPhase::Ready;
        }
        let view = self.view_pod();
        let ended = (view.phase == PodPhase::Ended).then(|| self.refuse_pod("started"));
        answer(reply, ended.map_or(Ok(view), Err));
    }

    fn view_pod(&self) -> PodView {
        PodView {
            pid: self.vm.as_ref().map_or(0, |vm| vm.pid()),
            phase: self.pod_life.phase,
            created_ns: self.pod_life.created_ns,
            exit: self.pod_life.exit,
        }
    }

    fn wait_pod(&mut self, reply: Reply<Exit>) {
        match (self.has_pod_calls(), self.pod_life.phase, self.pod_life.exit) {
            (Err(error), _, _) => answer(reply, Err(error)),
            (Ok(()), _, Some(exit)) => answer(reply, Ok(exit)),
            (Ok(()), PodPhase::Absent, None) => answer(reply, Err(self.refuse_pod("waited for"))),
            (Ok(()), _, None) => {
                // Callers that have left, with a containerd that was restarted, wait no more.
                self.pod_life.waiting.retain(|waiter| !waiter.is_closed());
                self.pod_life.waiting.push(reply);
            }
        }
    }

    fn stop_pod(&mut self, reply: Reply<()>) {
        if let Err(error) = self.has_pod_calls() {
            return answer(reply, Err(error));
        }
        self.discard_vm();
        if self.vm.is_none() {
            return answer(reply, Ok(()));
        }
        self.pod_life.stopping.push(reply);
    }

    /// What this host counts: the guest's memory and CPU time, with the VMM's own.
    fn pod_counters(&self) -> Result<CgroupFiles, Error> {
        self.has_pod_calls()?;
        match &self.cgroup {
            Some(cgroup) if self.vm.is_some() => Ok(cgroup.counters()),
            Some(_) | None => Err(self.refuse_pod("measured")),
        }
    }

    /// The VM has ended: answers those who wait for it.
    pub(super) fn pod_ended(&mut self) {
        let exit = if self.closing {
            Exit { status: 0, ..lost() }
        } else {
            lost()
        };
        self.pod_life.phase = PodPhase::Ended;
        self.pod_life.exit.get_or_insert(exit);
        for waiter in self.pod_life.waiting.drain(..) {
            answer(waiter, Ok(exit));
        }
        for reply in self.pod_life.stopping.drain(..) {
            answer(reply, Ok(()));
        }
    }
}
