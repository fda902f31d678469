//! An exec's way: request, process, streams, fork, reaper. Either it runs, with its name in the container's table, or
//! nothing of it is left.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::agent::StartExecRequest;
use oci_spec::runtime::{Process as Wanted, Spec};

use super::process::Process;
use super::state::State;
use super::{Container, Containers, lock};
use crate::error::Error;
use crate::exec::{self, ExecRequest};
use crate::spec::{complete_process, guest_uid, parse_process};
use crate::stdio;

/// Most execs of one container at a time.
const MAX_EXECS: usize = 4096;
/// How long a process may take until it executes its command: less than the host waits for an answer.
const EXECUTED: Duration = Duration::from_secs(50);

impl Containers {
    /// Runs a process in a container; gives its pid once its command is executed.
    pub async fn exec(self: &Arc<Self>, request: StartExecRequest) -> Result<u32, Error> {
        // A caller that goes away leaves no half of a process.
        let this = Arc::clone(self);
        let started = tokio::spawn(async move {
            let container = this.get(&request.container_id)?;
            let wanted = parse(&request.process, &container.spec)?;
            // A process that is frozen on its way would never be told of.
            let _not_frozen = container.freezing.read().await;
            container.reserve(&request.exec_id)?;
            let started = this.start_exec(&container, &request, wanted).await;
            let mut execs = lock(&container.execs);
            match started {
                Ok(process) => {
                    let pid = process.pid();
                    execs.insert(request.exec_id, Some(process));
                    Ok(pid)
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
        mut wanted: Wanted,
    ) -> Result<Arc<Process>, Error> {
        let find_home = complete_process(&mut wanted);
        let dialed = stdio::dial(&self.dialer, request.stdio.get_or_default())?;
        let job = ExecRequest {
            process: &wanted,
            find_home,
            spec: &container.spec,
            init: (container.init.raw_pid(), container.pidfd.as_fd()),
            cgroup: &container.cgroup,
        };
        let (ends, pipes) = stdio::pipes(&dialed, guest_uid(&container.spec, wanted.user().uid()))?;
        let started = exec::start(&job, &ends.0)?;
        drop(ends);
        let process = Arc::new(Process::new(started.pid));
        let (watched, whole) = (Arc::clone(&process), Arc::downgrade(container));
        self.reaper.watch(started.pid, move |exit| {
            if let Some(container) = whole.upgrade() {
                container.count_kills();
            }
            watched.ended(exit);
        });
        let executed = tokio::time::timeout(EXECUTED, started.executed()).await;
        let terminal = match executed {
            Ok(Ok(terminal)) => terminal,
            Ok(Err(error)) => return Err(end(&process, error).await),
            Err(_) => {
                let seconds = EXECUTED.as_secs();
                let error = Error::Runtime(format!("the command was not executed within {seconds} s"));
                return Err(end(&process, error).await);
            }
        };
        let streams = match &terminal {
            Some(master) => dialed.with_terminal(master).await,
            None => dialed.with_pipes(pipes).await,
        };
        match streams {
            Ok(streams) => process.attach(streams, terminal),
            // Nobody would ever hear of it.
            Err(error) => return Err(end(&process, error).await),
        }
        Ok(process)
    }
}

/// Ends a process that is not to be, so that nothing of it is left when its caller hears of `error`.
async fn end(process: &Process, error: Error) -> Error {
    // Where it has ended by itself, that is as good.
    let _ = process.kill(libc::SIGKILL);
    process.wait().await;
    error
}

impl Container {
    /// Takes `exec_id` for a process that is being started.
    fn reserve(&self, exec_id: &str) -> Result<(), Error> {
        let state = *lock(&self.state);
        // Its namespaces are there from the time it is created.
        if !matches!(state, State::Created | State::Running) {
            return Err(Error::WrongState {
                id: self.id.clone(),
                state: state.name(),
                request: "exec",
            });
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
                what: format!("container {:?} has {MAX_EXECS} execs", self.id),
            });
        }
        execs.insert(exec_id.to_owned(), None);
        Ok(())
    }
}

/// The process of a request, completed from its container's spec where it is silent, as by runc.
fn parse(json: &[u8], spec: &Spec) -> Result<Wanted, Error> {
    let mut wanted = parse_process(json)?;
    let Some(init) = spec.process() else {
        return Ok(wanted);
    };
    if wanted.capabilities().is_none() {
        wanted.set_capabilities(init.capabilities().clone());
    }
    if wanted.rlimits().as_ref().is_none_or(Vec::is_empty) {
        wanted.set_rlimits(init.rlimits().clone());
    }
    if wanted.no_new_privileges().is_none() {
        wanted.set_no_new_privileges(init.no_new_privileges());
    }
    if wanted.oom_score_adj().is_none() {
        wanted.set_oom_score_adj(init.oom_score_adj());
    }
    if wanted.scheduler().is_none() {
        wanted.set_scheduler(init.scheduler().clone());
    }
    if wanted.io_priority().is_none() {
        wanted.set_io_priority(*init.io_priority());
    }
    if wanted.exec_cpu_affinity().is_none() {
        wanted.set_exec_cpu_affinity(init.exec_cpu_affinity().clone());
    }
    if wanted.user().umask().is_none() {
        wanted.user_mut().set_umask(init.user().umask());
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(process: &serde_json::Value) -> Result<Wanted, Error> {
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
    }

    #[test]
    fn what_the_request_does_not_say_the_container_does() {
        let process = parsed(&json!({"args": ["a"], "cwd": "/", "user": {"uid": 5, "gid": 5}})).unwrap();
        assert_eq!(process.oom_score_adj(), Some(7));
        assert_eq!(process.no_new_privileges(), Some(true));
        assert_eq!(process.rlimits().as_ref().map(Vec::len), Some(1));
        assert!(process.capabilities().is_some());
        assert_eq!(process.user().umask(), Some(0o027));
        assert_eq!(process.user().uid(), 5);
    }

    #[test]
    fn what_the_request_says_counts() {
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
    fn refuses_by_name() {
        for (process, word) in [
            (json!({"args": [], "cwd": "/", "user": {}}), "process.args"),
            (json!({"args": ["a"], "cwd": "tmp", "user": {}}), "process.cwd"),
            (json!({"args": ["a"], "cwd": "/", "user": {"uid": -1}}), "process"),
            (json!([]), "process"),
        ] {
            let error = parsed(&process).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
