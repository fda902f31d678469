//! Kill: a signal for a process in the guest. SIGKILL of an init process is enforced: if the process has not
//! exited by a deadline, because the guest hangs, the agent is deaf or the process waits in the kernel, its
//! VM is ended.

use std::time::Duration;

use nacre_protocol::fault::{self, FaultPoint};
use tokio::time::{Instant, timeout, timeout_at};

use super::progress::until_ended;
use super::queue::Event;
use super::{Sandbox, failed};
use crate::container::{Reply, TaskState, answer};
use crate::error::Error;
use crate::guest::{CallError, Guest, SIGKILL};
use crate::log;
use crate::process_id::{ProcessId, ProcessKey};

/// How long an init process may take to exit after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// When the agent is pinged during that time: an init process that reacts has exited before.
const PING_AFTER: Duration = Duration::from_secs(2);

impl Sandbox {
    pub(super) fn kill(&mut self, name: ProcessId, signal: u32, all: bool, reply: Reply<()>) {
        if self.is_pause(&name.container) && name.is_init() {
            return self.kill_pause(&name.container, signal, reply);
        }
        let guest = match self.check_kill(&name) {
            Ok(guest) => guest,
            Err(error) => return answer(reply, Err(error)),
        };
        if signal == SIGKILL && name.is_init() {
            self.enforce_kill(&name.container);
        }
        // "All" is the container's init and whatever it left; an exec process is one process.
        let all = all && name.is_init();
        tokio::spawn(async move {
            fault::reach(FaultPoint::KillAsks);
            let killed = match guest.kill(&name, signal, all).await {
                // The process ended with its VM.
                Err(CallError::Lost(_)) if signal == SIGKILL => Ok(()),
                result => result.map_err(|error| error.into_error("kill")),
            };
            answer(reply, killed);
        });
    }

    fn check_kill(&self, name: &ProcessId) -> Result<Guest, Error> {
        let (container, _) = self.find(name)?;
        let lifecycle = &container.lifecycle;
        match Self::state_of(container, name) {
            TaskState::Stopped | TaskState::Exiting => Err(Error::Finished(name.clone())),
            _ if name.is_init() && lifecycle.is_init_exit_held() => Err(Error::Finished(name.clone())),
            TaskState::Running => self.guest(),
            TaskState::Created | TaskState::Starting if name.is_init() => self.guest(),
            TaskState::Creating | TaskState::Created | TaskState::Starting => {
                Err(self.refuse_process(name, "killed"))
            }
        }
    }

    /// Starts the deadline of a SIGKILL, once for each container.
    pub(super) fn enforce_kill(&mut self, id: &str) {
        let guest = self.progress.borrow().guest();
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if std::mem::replace(&mut container.kill_enforced, true) {
            return;
        }
        let (key, mut progress) = (container.init.key.clone(), self.progress.subscribe());
        self.queue.send_result(async move {
            // With the VM, init has ended.
            let ended = until_ended(&mut progress);
            let agent_answers = tokio::select! {
                () = ended => false,
                answers = agent_answers(guest) => answers,
            };
            Event::KillExpired(key, agent_answers)
        });
    }

    /// Handles an init process that has survived SIGKILL. Its VM is ended if nothing else runs in it, or if
    /// its agent does not answer, either. Otherwise a caller of Delete learns that it failed.
    pub(super) fn kill_expired(&mut self, key: &ProcessKey, agent_answers: bool) {
        let is_alone = key.name.container == self.identity.id || self.containers.len() == 1;
        let Some(container) = self.container_of_key(key) else {
            return;
        };
        if container.lifecycle.is_init_exit_held() || container.lifecycle.init().exit().is_some() {
            return;
        }
        // The next SIGKILL has a deadline again.
        container.kill_enforced = false;
        let seconds = KILL_DEADLINE.as_secs();
        let failed = failed(
            "kill",
            format_args!("{} has not exited {seconds} s after SIGKILL", key.name),
            Some("the guest's console shows whether its kernel hangs".to_owned()),
        );
        if is_alone || !agent_answers {
            return self.fail_vm(failed);
        }
        log::error(&failed);
        if let Some(reply) = container.init.deleting.take() {
            answer(reply, Err(failed.into()));
        }
    }
}

/// Returns after [`KILL_DEADLINE`]: whether the agent has answered a ping in this time. It is asked before, so that
/// the containers of a guest that hangs end no later than one that is alone in its VM.
async fn agent_answers(guest: Option<Guest>) -> bool {
    let deadline = Instant::now() + KILL_DEADLINE;
    let never = std::future::pending::<()>;
    let _elapsed = timeout(PING_AFTER, never()).await;
    let answers = match guest {
        Some(guest) => timeout_at(deadline, guest.ping()).await.unwrap_or(false),
        None => false,
    };
    let _elapsed = timeout_at(deadline, never()).await;
    answers
}
