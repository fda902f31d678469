//! Create. The spec is planned and the streams are opened at once, so that a spec that can't be honoured is
//! refused without waiting. Then a task of its own makes the mounts, places them when the VMM's mount
//! namespace is ready, runs the hooks, and asks the agent for the container when the agent is ready.

mod disks;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nacre_protocol::agent::{CreateContainerRequest, RestrictedMount, Stdio};
use nacre_protocol::fault::{self, FaultPoint};
use nacre_protocol::{container_id, guest, spec};
use tokio::sync::{oneshot, watch};

use super::progress::{Progress, changed, ended, explained, ready};
use super::queue::{Event, Queue};
use super::unused::NEXT_CALL;
use super::{Sandbox, delete, failed, log_ignored_fields, reach_when_sent, volumes};
use crate::bundle::{self, Pids, Plan, Pod};
use crate::container::{self, Container, CreateRequest, Lifecycle, Process, Reply, TaskState, answer};
use crate::error::{Error, StepFailed};
use crate::event::TaskEvent;
use crate::guest::Guest;
use crate::hooks::Point;
use crate::mirror::Mirrors;
use crate::mount::Mount;
use crate::pod_spec::is_same_namespace;
use crate::poststop::Poststop;
use crate::process_id::{ProcessId, ProcessKey};
use crate::rootfs::Restriction;
use crate::shared_mounts::Part;
use crate::vm::{Disks, Vm};
use crate::{clock, identity, log, rootfs};

impl Sandbox {
    pub(super) fn create(&mut self, request: CreateRequest, reply: Reply<u32>) {
        fault::reach(FaultPoint::CreateCalled);
        self.creations = self.creations.wrapping_add(1);
        match self.begin_create(&request) {
            Ok((init, job)) => {
                let key = init.key.clone();
                let (cancel_create, cancelled) = oneshot::channel();
                let container = Container {
                    pid: job.pid,
                    lifecycle: Lifecycle::creating(),
                    init,
                    execs: Default::default(),
                    oom_kills: 0,
                    oom_events: 0,
                    pids: job.plan.pids,
                    hooks: job.plan.hooks.clone(),
                    poststop: job.poststop.clone(),
                    mount_points: job.mount_points.clone(),
                    has_disks: job.plan.has_disks(),
                    creating: Some(reply),
                    cancel_create: Some(cancel_create),
                    kill_enforced: false,
                    is_published: false,
                    freezing: None,
                    request,
                };
                self.containers.insert(key.name.container.clone(), container);
                self.queue
                    .send_result(async move { Event::Created(key, job.run(cancelled).await) });
            }
            Err(error) => {
                log::error(format_args!("create {}: {error}", request.id));
                answer(reply, Err(error));
                self.limit_unused(NEXT_CALL);
            }
        }
    }

    fn begin_create(&mut self, request: &CreateRequest) -> Result<(Process, Job), Error> {
        self.check_create(&request.id)?;
        self.recorder.step("create called", clock::monotonic_ns());
        let mut plan = self.plan(request)?;
        let host_mounts = look_at_sources(&plan)?;
        log_ignored_fields(&ProcessId::init(&request.id), &plan.ignored);
        if plan.terminal != request.paths.terminal {
            let reason = if plan.terminal {
                "is true, but Create asks for no terminal"
            } else {
                "is not true, but Create asks for a terminal"
            };
            return Err(Error::Refused(format!("process.terminal: {reason}")));
        }
        let (streams, stdio) = self.open_streams(&request.paths, &request.id)?;
        if let Err(error) = self.add_to_size(&request.id, plan.limits) {
            self.discard_streams(&streams);
            return Err(error);
        }
        if let (Some(vm), Some(adjustment)) = (&mut self.vm, plan.oom_score_adj) {
            vm.add_oom_score_adj(adjustment);
        }
        let key = self.new_key(ProcessId::init(&request.id));
        let init = Process::new(key, request.paths.clone(), streams);
        let mirrors = self.mirrors_for(&plan);
        let shared = self.share_mounts(&request.id, &mut plan);
        let mount_points = if plan.is_pause {
            Vec::new()
        } else {
            rootfs::mount_points(&request.id, &plan.rootfs, &plan.mounts)
        };
        let poststop = Poststop::new(&self.identity.directory(), &request.id, &plan.hooks);
        let job = Job {
            id: request.id.clone(),
            poststop,
            plan,
            stdio,
            pid: self.vm.as_ref().map_or(0, Vm::pid),
            vmm: self.vm.as_ref().map(|vm| vm.shared_pidfd()),
            disks: self.vm.as_ref().map(Vm::disks),
            progress: self.progress.subscribe(),
            queue: self.queue.clone(),
            mirrors,
            shared,
            host_mounts,
            mount_points,
            restrictions: Vec::new(),
            may_have_mounts: false,
            hooks_ran: false,
        };
        Ok((init, job))
    }

    /// Whether a container called `id` may be created now.
    fn check_create(&self, id: &str) -> Result<(), Error> {
        if !container_id::is_valid(id) {
            // The id becomes the name of a directory.
            return Err(Error::InvalidId(id.to_owned()));
        }
        if self.containers.contains_key(id) {
            return Err(Error::Exists(ProcessId::init(id)));
        }
        if self.deleting.contains(id) {
            return Err(Error::State {
                name: ProcessId::init(id),
                state: "being deleted",
                wanted: "created",
            });
        }
        if self.closing {
            return Err(Error::Closing);
        }
        self.refuse_early_container()
    }

    fn plan(&self, request: &CreateRequest) -> Result<Plan, Error> {
        let spec = identity::read_spec(&request.bundle);
        let spec = spec.map_err(|error| failed("read spec", error, None))?;
        let (own_pids, shares_pids) = self.pid_namespaces();
        let writable_layer = self.writable_layer(&request.rootfs);
        // Those of erofs images as images, if the writable layer is a disk.
        let images = writable_layer.and_then(|_| rootfs::erofs_layers::images(&request.rootfs));
        let rootfs = images.unwrap_or_else(|| request.rootfs.clone());
        let pod = Pod {
            pid: self.vm.as_ref().map_or(0, Vm::pid),
            sandbox: &self.identity.id,
            spec: &self.spec,
            own_pids: &own_pids,
            shares_pids,
            writable_layer,
            is_same: is_same_namespace,
        };
        let spec = spec::check(&spec)?;
        Ok(bundle::plan(&request.id, &request.bundle, spec, rootfs, pod)?)
    }

    /// What the writable layer of a root file system of these mounts is to be a copy of; None if the host writes it.
    fn writable_layer(&self, mounts: &[Mount]) -> Option<&Path> {
        let config = self.config.as_ref()?;
        let configured = config.writable_layer.as_deref();
        // Only the guest mounts the images of layers, so it also writes.
        let template = match bundle::has_images(mounts) {
            true => configured.unwrap_or(&config.layer_template),
            false => configured?,
        };
        let upper = bundle::upper_directory(mounts)?;
        rootfs::writable_layer::fits(upper).then_some(template)
    }

    /// The running containers with a pid namespace of their own, and whether another one shares the pod's.
    fn pid_namespaces(&self) -> (Vec<String>, bool) {
        let runs = |id: &str, container: &Container| {
            let state = container.lifecycle.init().state;
            !self.is_pause(id) && !matches!(state, TaskState::Creating | TaskState::Stopped)
        };
        let with = |pids: Pids| {
            let running = self
                .containers
                .iter()
                .filter(move |(id, container)| runs(id, container) && container.pids == pids);
            running.map(|(id, _)| id.clone())
        };
        (with(Pids::Own).collect(), with(Pids::Pod).next().is_some())
    }

    /// The job of a Create ended.
    pub(super) fn created(&mut self, key: &ProcessKey, result: Result<Option<u32>, Error>) {
        let id = &key.name.container;
        let Some(container) = self.container_of_key(key) else {
            return;
        };
        match result {
            Ok(guest_pid) => {
                container.init.guest_pid = guest_pid;
                self.advance(key, container::Event::Created);
            }
            Err(error) => {
                log::error(format_args!("create {id}: {error}"));
                if let Some(reply) = container.creating.take() {
                    answer(reply, Err(error));
                }
                self.recorder.write();
                self.remove_unused_volumes(id);
                self.advance(key, container::Event::CreateFailed);
            }
        }
    }

    pub(super) fn report_created(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let (pid, key) = (container.pid, container.init.key.clone());
        self.recorder.step("container created", clock::monotonic_ns());
        match container.init.guest_pid {
            Some(guest_pid) => log::info(format_args!("{id} created, pid {guest_pid} in the guest")),
            None => log::info(format_args!("{id} created, the pod's pause container")),
        }
        container.is_published = true;
        self.events.publish(&TaskEvent::Created {
            request: &container.request,
            pid,
        });
        if let Some(reply) = container.creating.take() {
            answer(reply, Ok(pid));
        }
        reach_when_sent(FaultPoint::CreateReported);
        if !self.is_pause(id) {
            self.watch_oom_kills(&key, 0);
        }
    }

    pub(super) fn refuse_create(&mut self, id: &str) {
        let reply = self
            .containers
            .get_mut(id)
            .and_then(|container| container.creating.take());
        if let Some(reply) = reply {
            answer(reply, Err(Error::Cancelled(ProcessId::init(id))));
        }
    }
}

/// Refuses a plan with a source that does not respond; returns the host's mounts.
fn look_at_sources(plan: &Plan) -> Result<rootfs::Mounts, Error> {
    let host = rootfs::Mounts::read().map_err(|error| failed("read /proc/self/mountinfo", error, None))?;
    rootfs::sources::check(&plan.mounts, &host).map_err(|error| failed("look at volumes", error, None))?;
    Ok(host)
}

/// The part of Create that takes time, and holds no state of the sandbox.
struct Job {
    id: String,
    plan: Plan,
    stdio: Stdio,
    /// The VMM's host pid.
    pid: u32,
    vmm: Option<Arc<OwnedFd>>,
    disks: Option<Arc<Disks>>,
    progress: watch::Receiver<Progress>,
    queue: Queue,
    /// Those of the pod, if the container may have one.
    mirrors: Option<Mirrors>,
    /// Its part in each of the pod's shared mounts that it has.
    shared: Vec<Part>,
    /// The mounts of the host when Create came.
    host_mounts: rootfs::Mounts,
    /// The container's mount points in the tree that the guest sees.
    mount_points: Vec<PathBuf>,
    /// What the host's mounts do not allow in the container's files.
    restrictions: Vec<Restriction>,
    /// Mounts of the container may be in the VMM's namespace.
    may_have_mounts: bool,
    /// The hooks that are due once a hook of the creation may have run.
    poststop: Poststop,
    /// A hook of the creation may have run.
    hooks_ran: bool,
}

impl Job {
    /// Makes the container, unless `cancelled` is closed before the agent is asked for it. An agent that was
    /// asked is waited for: the sandbox then removes what it made.
    async fn run(mut self, cancelled: oneshot::Receiver<()>) -> Result<Option<u32>, Error> {
        let guest = tokio::select! {
            // Resolves with an error when the sender is dropped: that is the signal.
            _ = cancelled => Err(Error::Cancelled(ProcessId::init(&self.id))),
            prepared = self.prepare() => prepared,
        };
        let result = match guest {
            Ok(_) if self.plan.is_pause => Ok(None),
            Ok(guest) => self.ask(guest).await.map(Some),
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.undo().await;
        }
        result
    }

    /// Everything that comes before the agent's part.
    async fn prepare(&mut self) -> Result<Guest, Error> {
        if !self.plan.is_pause {
            if let Some(mirrors) = &self.mirrors {
                volumes::choose_mirrors(mirrors, &self.id, &mut self.plan).await;
            }
            self.make_mounts().await?;
        }
        self.hooks_ran = true;
        self.poststop.record();
        for point in [Point::Prestart, Point::CreateRuntime] {
            let run = self.plan.hooks.run(point, self.pid).await;
            run.map_err(|error| failed("run hooks", error, None))?;
        }
        let guest = ready(&mut self.progress).await?;
        if let Some(mirrors) = &self.mirrors {
            let filled = mirrors.fill(&self.id, guest.clone()).await;
            filled.map_err(|reason| failed("copy volumes", reason, None))?;
        }
        Ok(guest)
    }

    /// Makes the container's mounts of the host and moves them into the VMM's mount namespace.
    async fn make_mounts(&mut self) -> Result<(), Error> {
        let detached = rootfs::detach(&self.id, &self.plan.rootfs, &self.plan.mounts, &self.host_mounts)
            .await
            .map_err(|error| failed("mount root file system", error, None))?;
        fault::reach(FaultPoint::CreateMounts);
        self.step("host mounts made").await;
        self.running().await?;
        let vmm = self.vmm.clone().ok_or(Error::Closing)?;
        self.may_have_mounts = true;
        self.restrictions = detached.restrictions;
        if let Err(error) = rootfs::move_into_vmm(vmm.as_fd(), &detached.placements).await {
            let step = failed("place root file system", error, None);
            return Err(ended(&mut self.progress).await.unwrap_or(step).into());
        }
        drop(detached.placements);
        fault::reach(FaultPoint::CreatePlaced);
        self.step("host mounts placed").await;
        volumes::complete_shared(std::mem::take(&mut self.shared)).await
    }

    /// Removes what a creation that failed or was cancelled has left.
    async fn undo(&mut self) {
        if let Some(mirrors) = &self.mirrors {
            mirrors.release(&self.id).await;
        }
        if let Some(vmm) = self.vmm.as_ref().filter(|_| self.may_have_mounts) {
            delete::remove_files(vmm, &self.id, &self.mount_points, &self.progress).await;
        }
        if let Some(disks) = self.disks.as_ref().filter(|_| self.plan.has_disks()) {
            let guest = self.progress.borrow().guest();
            disks.release(guest.as_ref(), &self.id).await;
        }
        if self.hooks_ran {
            self.poststop.run(self.pid).await;
        }
    }

    async fn ask(&mut self, guest: Guest) -> Result<u32, Error> {
        let (disks, file_systems) = self.attach_disks().await?;
        let request = CreateContainerRequest {
            disks,
            file_systems,
            container_id: self.id.clone(),
            spec: self.plan.guest_spec.to_string().into_bytes(),
            stdio: Some(std::mem::take(&mut self.stdio)).into(),
            restricted_mounts: self.restrictions.iter().map(restricted_mount).collect(),
            pod_shm_bytes: self.plan.pod_shm.as_deref().map_or(0, rootfs::shm_size),
            ..Default::default()
        };
        fault::reach(FaultPoint::CreateAsks);
        let result = guest.create(request).await;
        if result.is_ok() {
            fault::reach(FaultPoint::CreateAnswered);
        }
        explained(result, "create container", &mut self.progress).await
    }

    async fn step(&self, name: &'static str) {
        self.queue.send(Event::Step(name, clock::monotonic_ns())).await;
    }

    async fn running(&mut self) -> Result<(), Error> {
        match &*changed(&mut self.progress, |progress| {
            !matches!(progress, Progress::Starting)
        })
        .await?
        {
            Progress::Ended(reason) => Err(StepFailed::clone(reason).into()),
            Progress::Starting | Progress::Running | Progress::Ready(_) => Ok(()),
        }
    }
}

/// As the agent gets it.
fn restricted_mount(restriction: &Restriction) -> RestrictedMount {
    RestrictedMount {
        path: guest::shared_path(&restriction.path.to_string_lossy()),
        options: restriction
            .options
            .iter()
            .map(|option| (*option).to_owned())
            .collect(),
        ..Default::default()
    }
}
