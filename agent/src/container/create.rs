//! CreateContainer, step by step: spec, streams, helper, limits, reaper. On an error nothing of the container
//! is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nacre_protocol::agent::{CreateContainerRequest, RestrictedMount};
use nacre_protocol::container_id;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::Serialize;
use tokio::sync::{RwLock, watch};

use super::process::Process;
use super::state::{Input, Lifecycle};
use super::{BUNDLES, Container, Containers, STATE, lock, remove_directories};
use crate::cgroup::Cgroup;
use crate::devices;
use crate::disk::{self, MountedFileSystems};
use crate::error::Error;
use crate::pod;
use crate::runtime::{Create, CreatedInit, LATE_FILTER, Restriction, newidmap};
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
        let mut prepared = spec::prepare(id, &request.spec, &disk::find_devices(&request.disks)?)?;
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
        pod::enter_volumes(&prepared.spec)?;
        self.reserve(id)?;
        let created = self.create_steps(request, &prepared).await;
        match &created {
            Ok(container) => lock(&self.table).insert(id.clone(), Some(Arc::clone(container))),
            Err(_) => {
                // Ignore errors of the clean-up: the original one is returned, and the id is free either way.
                let _ = Cgroup::new(&prepared.cgroup).remove().await;
                let _ = remove_directories(id);
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
        newidmap::install(&prepared.spec, &self.program)
            .map_err(Error::file("linking programs in", newidmap::DIRECTORY))?;
        // Unmounted again if a step fails.
        let file_systems = MountedFileSystems::mount(id, &request.file_systems).await?;
        let dialed = stdio::dial(&self.dialer, request.stdio.get_or_default())?;
        let helper = self.take_helper()?;
        let cgroup = Cgroup::new(&prepared.cgroup);
        let create = Create {
            id: id.clone(),
            bundle: write_bundle(id, prepared)?,
            state: STATE.into(),
            cgroup: cgroup.directory().to_owned(),
            devices: prepared.devices.clone(),
            find_home: prepared.find_home,
            terminal: prepared.terminal,
            new_network: prepared.new_network,
            restrictions: request.restricted_mounts.iter().map(restriction).collect(),
            uts_names: prepared.uts_names.clone(),
            propagation: prepared.propagation.clone(),
        };
        let (ends, pending) = stdio::pipes(&dialed, prepared.uid)?;
        let mut init = helper.create(&create, ends.0).await?;
        // Only now, so that the limits for the command do not restrict libcontainer's own work.
        cgroup.apply(&prepared.limits)?;
        let terminal = init.terminal.take();
        let streams = match &terminal {
            Some(master) => dialed.with_terminal(master).await?,
            None => dialed.with_pipes(pending).await?,
        };
        let container = self.adopt(id, prepared, cgroup, init)?;
        *lock(&container.file_systems) = file_systems;
        container.init.attach(streams, terminal);
        container.watch_oom_kills();
        container.apply(Input::Created, "create")?;
        Ok(container)
    }

    /// Makes the agent init's parent. The reaper watches init before that, so that its exit cannot be missed.
    fn adopt(
        &self,
        id: &str,
        prepared: &PreparedSpec,
        cgroup: Cgroup,
        init: CreatedInit,
    ) -> Result<Arc<Container>, Error> {
        let init_pidfd =
            pidfd_open(init.pid, PidfdFlags::empty()).map_err(Error::system("opening a pidfd of init"))?;
        let container = Arc::new(Container {
            id: id.to_owned(),
            spec: prepared.spec.clone(),
            ignored: prepared.ignored.clone(),
            init: Arc::new(Process::new(init.pid)),
            init_pidfd,
            cgroup,
            file_systems: Mutex::default(),
            lifecycle: Mutex::new(Lifecycle::new()),
            execs: Mutex::default(),
            freeze_lock: RwLock::default(),
            update_lock: tokio::sync::Mutex::default(),
            oom_kills: watch::Sender::new(0),
            oom_watcher: Mutex::default(),
        });
        let owner = Arc::clone(&container);
        self.reaper.watch(init.pid, move |exit| owner.init_exited(exit));
        drop(init);
        Ok(container)
    }
}

fn restriction(mount: &RestrictedMount) -> Restriction {
    Restriction {
        path: PathBuf::from(&mount.path),
        options: mount.options.clone(),
    }
}

/// Writes the files that libcontainer reads, and returns their directory. With noNewPrivileges, the seccomp
/// filter is loaded right before execve and kept from libcontainer, whose own system calls the filter need
/// not allow then.
fn write_bundle(id: &str, prepared: &PreparedSpec) -> Result<PathBuf, Error> {
    let bundle = Path::new(BUNDLES).join(id);
    fs::create_dir_all(&bundle).map_err(Error::file("creating", &bundle))?;
    let mut spec = prepared.spec.clone();
    let no_new_privileges = spec
        .process()
        .as_ref()
        .and_then(|process| process.no_new_privileges());
    if no_new_privileges == Some(true)
        && let Some(linux) = spec.linux_mut()
        && let Some(filter) = linux.seccomp().clone()
    {
        linux.set_seccomp(None);
        write_json(bundle.join(LATE_FILTER), &filter)?;
    }
    write_json(bundle.join("config.json"), &spec)?;
    Ok(bundle)
}

fn write_json(file: PathBuf, content: &impl Serialize) -> Result<(), Error> {
    let json =
        serde_json::to_vec(content).map_err(|error| Error::bad_spec("config.json", error.to_string()))?;
    fs::write(&file, json).map_err(Error::file("writing", file))
}
