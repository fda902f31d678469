//! StartExec, step by step: process object, streams, fork, reaper. Either the command runs and the process is
//! in the container's table, or nothing of the process is left.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::agent::{StartExecRequest, StartExecResponse};
use oci_spec::runtime::{Process as ProcessSpec, Spec};

use super::process::Process;
use super::{Container, Containers, lock};
use crate::error::Error;
use crate::exec::{self, ExecRequest};
use crate::spec::{complete_process, guest_uid, parse_process};
use crate::stdio;

/// Most exec processes of one container at a time.
const MAX_EXECS: usize = 4096;
/// How long a process may take until its execve; shorter than the host waits for the reply.
const EXECVE_TIMEOUT: Duration = Duration::from_secs(50);

impl Containers {
    /// Starts an exec process; returns once its command is executed. The reply has its pid, and the fields of
    /// the request that have no effect.
    pub async fn exec(self: &Arc<Self>, request: StartExecRequest) -> Result<StartExecResponse, Error> {
        // In a separate task, so that a caller that disconnects does not leave half a process.
        let this = Arc::clone(self);
        let started = tokio::spawn(async move {
            let container = this.get(&request.container_id)?;
            let (process, ignored) = parse(&request.process, &container.spec)?;
            let _not_frozen = container.freeze_lock.read().await;
            container.reserve(&request.exec_id)?;
            let started = this.start_exec(&container, &request, process).await;
            let mut execs = lock(&container.execs);
            match started {
                Ok(process) => {
                    let pid = process.pid_number();
                    execs.insert(request.exec_id, Some(process));
                    Ok(StartExecResponse {
                        pid,
                        ignored,
                        ..StartExecResponse::default()
                    })
                }
                Err(error) => {
                    execs.remove(&request.exec_id);
                    Err(error)
                }
            }
        });
        started.await.map_err(|error| Error::Runtime(error.to_string()))?
    }

    async fn start_exec(
        &self,
        container: &Arc<Container>,
        request: &StartExecRequest,
        mut process: ProcessSpec,
    ) -> Result<Arc<Process>, Error> {
        let find_home = complete_process(&mut process);
        let dialed = stdio::dial(&self.dialer, request.stdio.get_or_default())?;
        let exec_request = ExecRequest {
            container_id: &container.id,
            process: &process,
            find_home,
            spec: &container.spec,
            filter: container.filter.as_deref(),
            init: (container.init.pid(), container.init_pidfd.as_fd()),
            cgroup: &container.cgroup,
        };
        let (ends, pipes) = stdio::pipes(&dialed, guest_uid(&container.spec, process.user().uid()))?;
        let started = exec::start(&exec_request, &ends.0)?;
        drop(ends);
        let process = Arc::new(Process::new(started.pid));
        self.watch_exec(container, &process);
        let executed = tokio::time::timeout(EXECVE_TIMEOUT, started.executed()).await;
        let terminal = match executed {
            Ok(Ok(terminal)) => terminal,
            Ok(Err(error)) => return Err(kill(&process, error).await),
            Err(_) => {
                let seconds = EXECVE_TIMEOUT.as_secs();
                let error = Error::Runtime(format!("timed out after {seconds} s executing the command"));
                return Err(kill(&process, error).await);
            }
        };
        let streams = match &terminal {
            Some(master) => dialed.with_terminal(master).await,
            None => dialed.with_pipes(pipes).await,
        };
        match streams {
            Ok(streams) => process.attach(streams, terminal),
            Err(error) => return Err(kill(&process, error).await),
        }
        Ok(process)
    }

    fn watch_exec(&self, container: &Arc<Container>, process: &Arc<Process>) {
        let (watched, container) = (Arc::clone(process), Arc::downgrade(container));
        self.reaper.watch(process.pid(), move |exit| {
            if let Some(container) = container.upgrade() {
                container.update_oom_kills();
            }
            watched.exited(exit);
        });
    }
}

/// Kills a process that could not be started, waits for its exit, and returns `error`.
pub(super) async fn kill(process: &Process, error: Error) -> Error {
    // Ignore this error: the process has exited already.
    let _ = process.kill(libc::SIGKILL);
    process.wait().await;
    error
}

impl Container {
    /// Reserves `exec_id` for a process that is being started.
    fn reserve(&self, exec_id: &str) -> Result<(), Error> {
        let lifecycle = *lock(&self.lifecycle);
        if !lifecycle.accepts_exec() {
            return Err(self.wrong_state(lifecycle, "start a process in"));
        }
        let mut execs = lock(&self.execs);
        if exec_id.is_empty() || execs.contains_key(exec_id) {
            return Err(Error::ProcessExists {
                id: self.id.clone(),
                exec_id: exec_id.to_owned(),
            });
        }
        if execs.len() >= MAX_EXECS {
            return Err(Error::BadRequest {
                what: format!(
                    "container {:?} has {MAX_EXECS} exec processes, the most it may have",
                    self.id
                ),
            });
        }
        execs.insert(exec_id.to_owned(), None);
        Ok(())
    }
}

/// Parses the process object of a request. Properties that it leaves out are those of the container's init,
/// as with runc exec.
fn parse(json: &[u8], spec: &Spec) -> Result<(ProcessSpec, Vec<String>), Error> {
    let (mut process, ignored) = parse_process(json)?;
    let Some(init) = spec.process() else {
        return Ok((process, ignored));
    };
    if process.capabilities().is_none() {
        process.set_capabilities(init.capabilities().clone());
    }
    if process.rlimits().as_ref().is_none_or(Vec::is_empty) {
        process.set_rlimits(init.rlimits().clone());
    }
    if process.no_new_privileges().is_none() {
        process.set_no_new_privileges(init.no_new_privileges());
    }
    if process.oom_score_adj().is_none() {
        process.set_oom_score_adj(init.oom_score_adj());
    }
    if process.scheduler().is_none() {
        process.set_scheduler(init.scheduler().clone());
    }
    if process.io_priority().is_none() {
        process.set_io_priority(*init.io_priority());
    }
    if process.exec_cpu_affinity().is_none() {
        process.set_exec_cpu_affinity(init.exec_cpu_affinity().clone());
    }
    if process.user().umask().is_none() {
        process.user_mut().set_umask(init.user().umask());
    }
    Ok((process, ignored))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(process: &serde_json::Value) -> Result<ProcessSpec, Error> {
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": ["init"], "cwd": "/", "user": {"uid": 0, "gid": 0, "umask": 0o027},
                "oomScoreAdj": 7, "noNewPrivileges": true,
                "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}],
                "capabilities": {"bounding": ["CAP_KILL"]}
            }
        });
        parse(
            process.to_string().as_bytes(),
            &serde_json::from_value(spec).unwrap(),
        )
        .map(|(process, _)| process)
    }

    #[test]
    fn properties_missing_in_the_request_come_from_init() {
        let process = parsed(&json!({"args": ["a"], "cwd": "/", "user": {"uid": 5, "gid": 5}})).unwrap();
        assert_eq!(process.oom_score_adj(), Some(7));
        assert_eq!(process.no_new_privileges(), Some(true));
        assert_eq!(process.rlimits().as_ref().map(Vec::len), Some(1));
        assert!(process.capabilities().is_some());
        assert_eq!(process.user().umask(), Some(0o027));
        assert_eq!(process.user().uid(), 5);
    }

    #[test]
    fn properties_of_the_request_take_precedence() {
        let process = parsed(&json!({
            "args": ["a"], "cwd": "/", "user": {"uid": 0, "gid": 0, "umask": 0}, "oomScoreAdj": -1, "noNewPrivileges": false,
            "capabilities": {}
        }))
        .unwrap();
        assert_eq!(process.oom_score_adj(), Some(-1));
        assert_eq!(process.no_new_privileges(), Some(false));
        assert_eq!(process.user().umask(), Some(0));
        let bounding = process
            .capabilities()
            .as_ref()
            .and_then(|sets| sets.bounding().clone());
        assert!(bounding.is_none_or(|set| set.is_empty()));
    }

    #[test]
    fn errors_name_the_field() {
        for (process, field) in [
            (json!({"args": [], "cwd": "/", "user": {}}), "process.args"),
            (json!({"args": ["a"], "cwd": "tmp", "user": {}}), "process.cwd"),
            (json!({"args": ["a"], "cwd": "/", "user": {"uid": -1}}), "process"),
            (json!([]), "process"),
        ] {
            let error = parsed(&process).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
