//! The VM's life: its start, the agent's first call, and what its end means for the pod.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::agent::SetupResponse;
use nacre_protocol::config;
use nacre_protocol::fault::{self, FaultPoint};
use nacre_protocol::state::{Failure, PodState};
use nacre_protocol::vsock::{AGENT_PORT, StreamAddress};

use super::actions::lost;
use super::progress::{Progress, until_ended};
use super::queue::Event;
use super::resize::Sizing;
use super::{Sandbox, failed, timeline};
use crate::cgroup::Cgroup;
use crate::error::StepFailed;
use crate::guest::{CallError, Guest};
use crate::network::Nic;
use crate::patience::within;
use crate::scheduling::{Scheduled, Threads};
use crate::size::{Host, Limits, PodSize, VmSize};
use crate::vm::{self, Boot, End, RequestError, Vm};
use crate::{clock, container, log};

impl Sandbox {
    /// Starts the VMM and what watches it.
    pub(super) fn start_vm(&mut self) -> Result<(), StepFailed> {
        let config = config::load().map_err(|error| failed("read configuration", error, None))?;
        let (limits, host) = (Limits::from(self.spec.size), Host::read(&self.spec.cpus));
        let size = VmSize::plan(&limits, &config, host);
        let size = self.find_template(&config, size, host);
        let sizing = Sizing::new(PodSize::new(size, limits, host));
        self.pod.size = Some(sizing.recorded());
        self.sizing = Some(sizing);
        let namespace = self.open_network()?;
        let cgroup = Cgroup::plan(self.spec.cgroups_path.as_deref(), &self.identity.key)
            .map_err(|error| failed("plan cgroup", error, None))?;
        if let Some(name) = &self.spec.name {
            log::info(format_args!("pod {name:?} in {}", self.identity.id));
        }
        self.pod.cgroup = Some(cgroup.path().to_owned());
        self.write_pod();
        fault::reach(FaultPoint::VmPlanned);
        let started = Vm::start(&config, &cgroup, &self.spec);
        self.cgroup = Some(cgroup);
        let deadline = config.boot_deadline;
        self.config = Some(config);
        let (vm, monitor, stream_table) = started.map_err(|error| {
            let hint = matches!(&error, vm::Error::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
            let hint = hint.then(|| "install Nacre again, or set the path in config.toml; `nacre doctor` checks it".into());
            failed("start VM", error, hint)
        })?;
        self.pod.vmm_pid = Some(vm.pid());
        fault::reach(FaultPoint::VmSpawned);
        self.write_pod();
        fault::reach(FaultPoint::VmRecorded);
        self.recorder.step("VMM started", clock::monotonic_ns());
        self.vm = Some(vm);
        self.expected_streams.set_table(stream_table);
        tokio::spawn(monitor.run(self.queue.sender()));
        self.watch_boot(deadline);
        match namespace {
            // The VMM starts meanwhile, and waits for its configuration.
            Some(namespace) => self.tie_links(namespace),
            None => self.boot(&[]),
        }
        self.enter_cgroup();
        Ok(())
    }

    /// Configures the VMM, with a device for each of `nics`.
    pub(super) fn boot(&mut self, nics: &[Nic]) {
        let (Some(config), Some(sizing)) = (&self.config, &self.sizing) else {
            return;
        };
        let Some(stream_table) = self.expected_streams.table() else {
            return;
        };
        let boot = Boot {
            config,
            size: sizing.vm(),
            id: &self.identity.id,
            stream_table,
            nics,
            template: self.template.opened.as_ref(),
        };
        let configured = self.vm.as_mut().map_or(Ok(()), |vm| vm.configure(&boot));
        self.template.opened = None;
        if let Err(error) = configured {
            self.fail_vm(failed("start VM", error, None));
        }
    }

    pub(super) fn vm_event(&mut self, event: vm::Event) {
        match event {
            vm::Event::Step(step) => self.recorder.step(step.name, step.done_ns),
            vm::Event::TemplateRefused { reason, is_transient } => {
                self.template_refused(&reason, is_transient);
            }
            vm::Event::Running => {
                self.recorder.step("guest starts", clock::monotonic_ns());
                // Only once: a VMM that was taken over must not make a pod that is ready look like one that
                // starts.
                self.progress.send_if_modified(|progress| {
                    let starts = matches!(progress, Progress::Starting);
                    if starts {
                        *progress = Progress::Running;
                    }
                    starts
                });
            }
            vm::Event::Connection { address, stream } => self.connection(address, stream),
            vm::Event::MemoryPlugged { mib } => self.memory_plugged(mib),
            vm::Event::Ended(end) => {
                let reason = self.reason(&end);
                // A VMM that someone else has killed says nothing of its template.
                if self.cause.is_some() || end.failed.is_some() || end.outcome.is_some() {
                    self.template_failed(&reason.reason);
                }
                self.vm_ended(reason);
            }
        }
    }

    fn connection(&mut self, address: StreamAddress, stream: OwnedFd) {
        if address.host_port == AGENT_PORT && !self.agent_seen {
            self.agent_seen = true;
            fault::reach(FaultPoint::AgentConnected);
            self.recorder
                .step(timeline::AGENT_CONNECTED, clock::monotonic_ns());
            self.set_up_agent(stream);
        } else if let Some(expected) = self.expected_streams.take(&address) {
            // Dropped if the process was removed in the meantime.
            drop(expected.send(stream));
        }
        // Any other connection is closed by dropping it. A VMM that was taken over may send any number of
        // them, so nothing is logged.
    }

    fn set_up_agent(&mut self, stream: OwnedFd) {
        let guest = match Guest::new(stream, self.scheduled(Threads::Vcpus)) {
            Ok(guest) => guest,
            Err(error) => return self.fail_vm(failed("set up guest", error, None)),
        };
        let hostname = self.spec.guest_hostname();
        let network = self.network.take_guest_s();
        let spec = self.spec.clone();
        self.queue.send_result(async move {
            let result = guest
                .setup(&hostname, network, &spec)
                .await
                .map(|response| (guest, response));
            Event::AgentSetUp(Box::new(result))
        });
    }

    pub(super) fn agent_set_up(&mut self, result: Result<(Guest, SetupResponse), CallError>) {
        // Setup was answered, but the VM has ended since.
        if self.vm.is_none() {
            return;
        }
        match result {
            Ok((guest, response)) if response.build_id == nacre_protocol::BUILD_ID => {
                fault::reach(FaultPoint::AgentReady);
                self.recorder.step("agent ready", clock::monotonic_ns());
                self.recorder.guest_kernel(response.kernel_release);
                self.recorder
                    .guest_clock(response.init_started_us, response.dialed_us);
                self.recorder.write();
                self.pod.state = PodState::Running;
                self.write_pod();
                self.watch_agent(guest.clone());
                self.watch_heartbeat(guest.clone());
                self.follow_clock(guest.clone());
                self.progress.send_replace(Progress::Ready(guest));
                self.start_forwarding();
                self.fit_size();
                if let Some(vm) = &self.vm {
                    let exits = vm.exits();
                    self.queue
                        .send_result(async move { Event::BootExits(exits.await) });
                }
            }
            Ok((_, response)) => {
                let reason = format!(
                    "shim is build {}, agent is {}",
                    nacre_protocol::BUILD_ID,
                    response.build_id
                );
                let hint = "build and install Nacre's parts together".to_owned();
                self.fail_vm(failed("set up guest", reason, Some(hint)));
            }
            Err(CallError::Answer(code, message)) => {
                self.fail_vm(failed(
                    "set up guest",
                    format_args!("the agent refused Setup: {code:?}: {message}"),
                    None,
                ));
            }
            Err(error @ CallError::TimedOut) => {
                let reason = error.into_error("Setup").to_string();
                self.fail_vm(failed("set up guest", reason, None));
            }
            Err(CallError::Lost(reason)) => self.agent_lost(&reason),
        }
    }

    /// The agent's stream is lost. Most likely the VM is ending and its end has the reason; if not, it is
    /// ended.
    pub(super) fn agent_lost(&self, reason: &str) {
        let mut progress = self.progress.subscribe();
        let queue = self.queue.clone();
        let lost = failed("running", format_args!("lost the agent: {reason}"), None);
        tokio::spawn(async move {
            if super::progress::ended(&mut progress).await.is_none() {
                queue.send(Event::VmFailed(lost)).await;
            }
        });
    }

    /// Ends the VM if a call times out and the agent does not answer a ping, either. Costs a healthy pod
    /// nothing.
    fn watch_agent(&self, guest: Guest) {
        let mut progress = self.progress.subscribe();
        let queue = self.queue.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = until_ended(&mut progress) => return,
                    () = guest.timed_out() => {}
                }
                if !guest.answers().await {
                    let reason = "the agent is connected but does not answer calls";
                    let failed = failed("running", reason, None);
                    return queue.send(Event::VmFailed(failed)).await;
                }
            }
        });
    }

    /// The VMM, for who waits for it.
    pub(super) fn scheduled(&self, which: Threads) -> Scheduled {
        Scheduled {
            pid: self.vm.as_ref().map_or(0, Vm::pid),
            cgroup: self.cgroup.as_ref().map(|cgroup| cgroup.path().to_owned()),
            which,
        }
    }

    /// Ends the VM if its agent does not answer Setup within `deadline`.
    pub(super) fn watch_boot(&self, deadline: Duration) {
        let mut progress = self.progress.subscribe();
        let queue = self.queue.clone();
        let vmm = self.scheduled(Threads::WhileBooting);
        tokio::spawn(async move {
            let known =
                progress.wait_for(|progress| matches!(progress, Progress::Ready(_) | Progress::Ended(_)));
            let late = within(deadline, &vmm, known).await.is_err();
            if late {
                let reason = format!("the guest's agent did not answer within {} s", deadline.as_secs());
                let hint = "boot_deadline_s in config.toml gives it longer; `nacre doctor` checks this host"
                    .to_owned();
                queue
                    .send(Event::VmFailed(failed("boot guest", reason, Some(hint))))
                    .await;
            }
        });
    }

    /// The VMM has counted the VM exits of the boot, or could not.
    pub(super) fn boot_exits(&mut self, exits: Result<BTreeMap<String, u64>, RequestError>) {
        match exits {
            Ok(exits) => {
                self.recorder.boot_exits(exits);
                self.recorder.write();
            }
            // The VM's end is logged with its reason.
            Err(RequestError::Ended) => {}
            Err(error) => log::warn(format_args!("reading the counts of VM exits: {error}")),
        }
    }

    /// Kills the VMM because of `cause`, which becomes the reason of every task's end.
    pub(super) fn fail_vm(&mut self, cause: StepFailed) {
        if let Some(vm) = &self.vm {
            self.cause.get_or_insert(cause);
            vm.kill();
        }
    }

    /// Kills the VMM, which is no longer needed: its end is not a failure.
    pub(super) fn discard_vm(&mut self) {
        self.closing = true;
        if let Some(vm) = &self.vm {
            vm.kill();
        }
        self.leave_cgroup();
    }

    fn reason(&self, end: &End) -> StepFailed {
        let console = self.vm.as_ref().map(|vm| vm.console_tail()).unwrap_or_default();
        let stderr_tail = self.vm.as_ref().map(|vm| vm.stderr_tail()).unwrap_or_default();
        let agent_was_there = matches!(&*self.progress.borrow(), Progress::Ready(_));
        let told = match (&self.cause, &self.config) {
            (Some(cause), _) => cause.clone(),
            (None, Some(config)) => end.reason(agent_was_there, config, &stderr_tail),
            (None, None) => failed("running", format_args!("the VMM ended: {:?}", end.status), None),
        };
        StepFailed { console, ..told }
    }

    /// The VM has ended, or could not be started: every task ends, and the reason is recorded.
    pub(super) fn vm_ended(&mut self, reason: StepFailed) {
        fault::reach(FaultPoint::VmEnded);
        self.vm = None;
        self.pod.silent_since = None;
        self.expected_streams.clear();
        self.make_template();
        self.leave_cgroup();
        self.release_network();
        self.remove_cgroup();
        if !self.closing {
            log::error(&reason);
            self.record_failure(&reason);
            self.pod.state = PodState::Stopped;
            self.write_pod();
        }
        self.progress.send_replace(Progress::Ended(Arc::new(reason)));
        self.next_resize();
        self.end_all_tasks();
        self.pod_ended();
    }

    fn record_failure(&self, reason: &StepFailed) {
        let failure = Failure {
            id: self.identity.id.clone(),
            namespace: self.identity.namespace.clone(),
            time: clock::realtime().as_secs(),
            step: reason.step.clone(),
            reason: reason.reason.clone(),
            hint: reason.hint.clone(),
            console: reason.console.clone(),
            timeline: self.recorder.timeline(),
        };
        if let Err(error) = crate::state::record_failure(&self.identity.key, &failure) {
            log::error(format_args!("keeping the failure's record: {error}"));
        }
    }

    fn end_all_tasks(&mut self) {
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in ids {
            // Possible in every state.
            let _ = self.feed(&id, container::Event::VmEnded(lost()));
        }
    }
}
