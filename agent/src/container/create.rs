//! A container's creation, step by step: id, spec, bundle, streams, helper, reaper. Either all of it is done or
//! nothing of it is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nacre_protocol::agent::CreateContainerRequest;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::Serialize;
use tokio::sync::{RwLock, watch};

use super::process::Process;
use super::state::State;
use super::{BUNDLES, Container, Containers, STATE, lock, remove_directories, workdir};
use crate::cgroup::Cgroup;
use crate::devices;
use crate::error::Error;
use crate::runtime::{Create, CreatedInit, LATE_FILTER, newidmap};
use crate::spec::{self, PreparedSpec};
use crate::stdio;

impl Containers {
    /// Makes a container, up to the gate at which its init waits.
    pub async fn create(self: &Arc<Self>, request: CreateContainerRequest) -> Result<Arc<Container>, Error> {
        // A caller that goes away leaves no half of a container.
        let this = Arc::clone(self);
        let made = tokio::spawn(async move { this.create_whole(&request).await });
        made.await.map_err(|error| Error::Runtime(error.to_string()))?
    }

    async fn create_whole(&self, request: &CreateContainerRequest) -> Result<Arc<Container>, Error> {
        let id = &request.container_id;
        spec::check_id(id)?;
        let mut prepared = spec::prepare(id, &request.spec)?;
        spec::resolve_namespaces(&mut prepared.spec, |id| self.init_of(id))?;
        let left_out = devices::leave_out_missing(&mut prepared.spec, prepared.devices.is_empty())?;
        prepared.ignored.extend(left_out);
        self.reserve(id)?;
        let made = self.make(request, &prepared).await;
        match &made {
            Ok(container) => lock(&self.table).insert(id.clone(), Some(Arc::clone(container))),
            Err(_) => {
                // The reason why it was not made is what is told; the id is free either way.
                let _ = Cgroup::new(&prepared.cgroup).remove().await;
                let _ = remove_directories(id);
                lock(&self.table).remove(id)
            }
        };
        made
    }

    fn reserve(&self, id: &str) -> Result<(), Error> {
        let mut table = lock(&self.table);
        if table.contains_key(id) {
            return Err(Error::ContainerExists { id: id.to_owned() });
        }
        table.insert(id.to_owned(), None);
        Ok(())
    }

    async fn make(
        &self,
        request: &CreateContainerRequest,
        prepared: &PreparedSpec,
    ) -> Result<Arc<Container>, Error> {
        let id = &request.container_id;
        workdir::make(&prepared.spec)?;
        newidmap::install(&prepared.spec, &self.program)
            .map_err(Error::file("writing", newidmap::DIRECTORY))?;
        let dialed = stdio::dial(&self.dialer, request.stdio.get_or_default())?;
        let helper = self.helper()?;
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
            uts_names: prepared.uts_names.clone(),
            propagation: prepared.propagation.clone(),
        };
        let (ends, pending) = stdio::pipes(&dialed, prepared.uid)?;
        let mut fresh = helper.create(&create, ends.0).await?;
        // Init waits at its gate: making it is not to be hindered by limits meant for its command.
        cgroup.apply(&prepared.limits)?;
        let terminal = fresh.terminal.take();
        let streams = match &terminal {
            Some(master) => dialed.with_terminal(master).await?,
            None => dialed.with_pipes(pending).await?,
        };
        let container = self.adopt(id, prepared, cgroup, fresh)?;
        container.init.attach(streams, terminal);
        container.start_counting();
        Ok(container)
    }

    /// Makes the agent init's parent, with the reaper watching before it can be.
    fn adopt(
        &self,
        id: &str,
        prepared: &PreparedSpec,
        cgroup: Cgroup,
        fresh: CreatedInit,
    ) -> Result<Arc<Container>, Error> {
        let pidfd =
            pidfd_open(fresh.pid, PidfdFlags::empty()).map_err(Error::system("holding on to init"))?;
        let container = Arc::new(Container {
            id: id.to_owned(),
            spec: prepared.spec.clone(),
            ignored: prepared.ignored.clone(),
            init: Arc::new(Process::new(fresh.pid)),
            pidfd,
            cgroup,
            state: Mutex::new(State::Created),
            execs: Mutex::default(),
            freezing: RwLock::default(),
            oom_kills: watch::Sender::new(0),
            counting: Mutex::default(),
        });
        let watched = Arc::clone(&container);
        self.reaper.watch(fresh.pid, move |exit| watched.ended(exit));
        drop(fresh);
        Ok(container)
    }
}

/// Writes what libcontainer reads. A filter of system calls that may be loaded last is not for libcontainer, whose own
/// calls before the command's it would have to allow.
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
        write(bundle.join(LATE_FILTER), &filter)?;
    }
    write(bundle.join("config.json"), &spec)?;
    Ok(bundle)
}

fn write(file: PathBuf, content: &impl Serialize) -> Result<(), Error> {
    let json = serde_json::to_vec(content).map_err(|error| Error::BadSpec {
        field: "config.json",
        reason: error.to_string(),
    })?;
    fs::write(&file, json).map_err(Error::file("writing", file))
}
