//! Kill: a signal for a process in the guest.

use super::Sandbox;
use super::calls::ask;
use crate::container::{Reply, TaskState, answer};
use crate::error::Error;
use crate::guest::Guest;
use crate::process_id::ProcessId;

impl Sandbox {
    pub(super) fn kill(&self, name: ProcessId, signal: u32, all: bool, reply: Reply<()>) {
        // "All" is the container's init and whatever it left; an exec process is one process.
        let all = all && name.is_init();
        match self.check_kill(&name) {
            Ok(guest) => ask(reply, "kill", async move { guest.kill(&name, signal, all).await }),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn check_kill(&self, name: &ProcessId) -> Result<Guest, Error> {
        let (container, _) = self.find(name)?;
        let lifecycle = &container.lifecycle;
        let state = lifecycle.process(&name.exec).map(|process| process.state);
        match state {
            None | Some(TaskState::Stopped | TaskState::Exiting) => Err(Error::Finished(name.clone())),
            _ if name.is_init() && lifecycle.is_init_exit_held() => Err(Error::Finished(name.clone())),
            Some(TaskState::Running) => self.guest(),
            Some(TaskState::Created | TaskState::Starting) if name.is_init() => self.guest(),
            Some(TaskState::Creating | TaskState::Created | TaskState::Starting) => {
                Err(self.refuse_process(name, "killed"))
            }
        }
    }
}
