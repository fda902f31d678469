//! CreateContainer, step by step: spec, streams, cgroup, init, limits. On an error nothing of the container
//! is left.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use nacre_protocol::agent::{CreateContainerRequest, RestrictedMount};
use nacre_protocol::container_id;
use rustix::process::{PidfdFlags, pidfd_open};
use tokio::sync::{RwLock, watch};

use super::exec::kill;
use super::process::Process;
use super::state::{Input, Lifecycle};
use super::{Container, Containers, lock};
use crate::cgroup::Cgroup;
use crate::child::Filter;
use crate::devices;
use crate::disk::{self, MountedFileSystems};
use crate::error::Error;
use crate::pod;
use crate::runtime::{self, Gate, InitRequest, Restriction, WaitingInit};
use crate::spec::{self, PreparedSpec};
use crate::stdio;

impl Containers {
    /// Creates a container; its init waits for the start notification when this returns.
    pub async fn create(self: &Arc<Self>, request: CreateContainerRequest) -> Result<Arc<Container>, Error> {
        // In a separate task, so that a caller that disconnects does not leave half a container.
        let this = Arc::clone(self);
        let created = tokio::spawn(async move { this.create_or_clean_up(&request).await });
        created.await.map_err(|error| Error::Runtime(error.to_string()))?
    }

    async fn create_or_clean_up(&self, request: &CreateContainerRequest) -> Result<Arc<Container>, Error> {
        let id = &request.container_id;
        if !container_id::is_valid(id) {
            return Err(Error::bad_id(id));
        }
        let disks = disk::find_devices(&request.disks).await?;
        let mut prepared = spec::prepare(id, &request.spec, disks)?;
        spec::resolve_namespaces(&mut prepared.spec, |container| match container {
            Some(id) => self.init_of(id).map(pod::namespaces_of),
            None => self.shared_init.namespaces(&self.reaper),
        })?;
        let left_out = devices::leave_out_missing(&mut prepared.spec, prepared.devices.is_empty())?;
        prepared.ignored.extend(left_out);
        if request.pod_shm_bytes > 0 {
            pod::mount_shm(request.pod_shm_bytes)?;
        }
        pod::set_sysctls(&pod::take_shared(&mut prepared.spec))?;
        pod::enter_volumes(&prepared.spec).await?;
        self.reserve(id)?;
        let created = self.create_steps(request, &prepared).await;
        match &created {
            Ok(container) => lock(&self.table).insert(id.clone(), Some(Arc::clone(container))),
            Err(_) => {
                // Ignore errors of the clean-up: the original one is returned, and the id is free either way.
                let _ = Cgroup::new(&prepared.cgroup).remove().await;
                lock(&self.table).remove(id)
            }
        };
        created
    }

    fn reserve(&self, id: &str) -> Result<(), Error> {
        let mut table = lock(&self.table);
        if table.contains_key(id) {
            return Err(Error::ContainerExists { id: id.to_owned() });
        }
        table.insert(id.to_owned(), None);
        Ok(())
    }

    async fn create_steps(
        &self,
        request: &CreateContainerRequest,
        prepared: &PreparedSpec,
    ) -> Result<Arc<Container>, Error> {
        let id = &request.container_id;
        // Unmounted again if a step fails.
        let file_systems = MountedFileSystems::mount(id, &request.file_systems).await?;
        let dialed = stdio::dial(&self.dialer, request.stdio.get_or_default())?;
        let profile = prepared.seccomp.clone();
        let filter = profile.map(|profile| self.filters.get(profile)).transpose()?;
        let cgroup = Cgroup::new(&prepared.cgroup);
        cgroup.create()?;
        let restrictions: Vec<_> = request.restricted_mounts.iter().map(restriction).collect();
        let init_request = InitRequest {
            id,
            spec: &prepared.spec,
            filter: filter.as_deref(),
            cgroup: &cgroup,
            find_home: prepared.find_home,
            restrictions: &restrictions,
            propagation: &prepared.propagation,
        };
        let (ends, pending) = stdio::pipes(&dialed, prepared.uid)?;
        let (process, init) = self.start_init(&init_request, ends, prepared).await?;
        let streams = match &init.terminal {
            Some(master) => dialed.with_terminal(master).await?,
            None => dialed.with_pipes(pending).await?,
        };
        let container = self.adopt(id, prepared, (cgroup, filter), (process, init.gate))?;
        *lock(&container.file_systems) = file_systems;
        container.init.attach(streams, init.terminal);
        container.watch_oom_kills();
        container.apply(Input::Created, "create")?;
        Ok(container)
    }

    /// Starts the init and waits until it is complete; limits of the command apply afterwards. If a step
    /// fails, it is killed.
    async fn start_init(
        &self,
        request: &InitRequest<'_>,
        ends: stdio::Ends,
        prepared: &PreparedSpec,
    ) -> Result<(Arc<Process>, WaitingInit), Error> {
        let mut process = None;
        let started = runtime::start(request, &ends.0, |pid| {
            let watched = Arc::new(Process::new(pid));
            process = Some(Arc::clone(&watched));
            self.reaper.watch(pid, move |exit| watched.exited(exit));
        });
        let started = started.await;
        drop(ends);
        let finished = async {
            let init = started?;
            let pid = init.pid;
            let waiting = init.ready().await?;
            if !prepared.devices.is_empty() {
                devices::load::attach(&prepared.devices, request.cgroup.directory())?;
            }
            // Only now, so that they do not restrict the agent's own work.
            request.cgroup.apply(&prepared.limits)?;
            runtime::set_uts_names(pid, request.spec, &prepared.uts_names)?;
            Ok(waiting)
        };
        match (finished.await, process) {
            (Ok(waiting), Some(process)) => Ok((process, waiting)),
            (Err(error), Some(process)) => Err(kill(&process, error).await),
            (Err(error), None) => Err(error),
            (Ok(_), None) => Err(Error::InitDied("it was not watched".to_owned())),
        }
    }

    /// Makes the container of the init `process`, which waits at `gate`.
    fn adopt(
        &self,
        id: &str,
        prepared: &PreparedSpec,
        (cgroup, filter): (Cgroup, Option<Arc<Filter>>),
        (process, gate): (Arc<Process>, Gate),
    ) -> Result<Arc<Container>, Error> {
        let init_pidfd = pidfd_open(process.pid(), PidfdFlags::empty())
            .map_err(Error::system("opening a pidfd of init"))?;
        let container = Arc::new(Container {
            id: id.to_owned(),
            spec: prepared.spec.clone(),
            filter,
            ignored: prepared.ignored.clone(),
            disks: prepared.disks.clone(),
            init: process,
            init_pidfd,
            gate: Mutex::new(Some(gate)),
            cgroup,
            file_systems: Mutex::default(),
            lifecycle: Mutex::new(Lifecycle::new()),
            execs: Mutex::default(),
            freeze_lock: RwLock::default(),
            update_lock: tokio::sync::Mutex::default(),
            oom_kills: watch::Sender::new(0),
            oom_watcher: Mutex::default(),
        });
        if container.init.exit().is_some() {
            return Err(Error::InitDied("before it was started".to_owned()));
        }
        let owner = Arc::clone(&container);
        self.reaper
            .watch(container.init.pid(), move |exit| owner.init_exited(exit));
        Ok(container)
    }
}

fn restriction(mount: &RestrictedMount) -> Restriction {
    Restriction {
        path: PathBuf::from(&mount.path),
        options: mount.options.clone(),
    }
}
