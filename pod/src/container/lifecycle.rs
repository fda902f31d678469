//! A container's life as a pure state machine: [`Lifecycle::on`] takes an event and returns what the sandbox
//! must do. No I/O, no clock, no streams. The rules of single processes and of freezing are the tables in
//! `task_state`; this machine adds the rules between processes:
//!
//! - An exit that is known before the reply to Start is reported after that reply.
//! - Init's exit is reported last. If it comes while exec processes are live, it is held
//!   ([`Action::HoldInitExit`]) until their exits are reported, or until the hold expires.
//! - Init's exit is also held until its output is written, or until the reader stalls: containerd before
//!   1.6.22 and 1.7.3 closes its end of the FIFOs as soon as it knows of the exit. An exec process's exit is
//!   not held: containerd reads its output to the end.
//! - Delete is answered when the process has exited and its output is written, or its deadline has passed.
//! - Delete of a container that is being created cancels the creation; Delete of one that was never started
//!   kills it.
//!
//! ```text
//!            ExecAdded   StartCalled   Started     Exited        OutputDrained + DeleteCalled
//! (exec)  ──────────▶ Created ──▶ Starting ──▶ Running ──▶ Stopped ──────────────────────────▶ removed
//! (init)  Creating ──▶ Created ──▶ Starting ──▶ Running ──▶ Stopped ─────────────────────────▶ container removed
//!            Created                  (exit held while execs live or output is unread)
//! ```

mod exits;
mod interface;
mod process_state;

use std::collections::BTreeMap;

use super::task_state::{Freeze, FreezeInput, Input, TaskState};
use crate::exit::Exit;
use exits::HeldExit;
pub use interface::{Action, Event, Rejected};
pub use process_state::ProcessState;

/// A container's state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lifecycle {
    init: ProcessState,
    execs: BTreeMap<String, ProcessState>,
    freeze: Freeze,
    pending_init_exit: Option<HeldExit>,
}

impl Lifecycle {
    /// A container that is being created.
    #[must_use]
    pub fn creating() -> Self {
        Self {
            init: ProcessState::new(TaskState::Creating),
            execs: BTreeMap::new(),
            freeze: Freeze::Thawed,
            pending_init_exit: None,
        }
    }

    /// The process with this exec id; init for the empty one.
    #[must_use]
    pub fn process(&self, exec: &str) -> Option<&ProcessState> {
        if exec.is_empty() {
            return Some(&self.init);
        }
        self.execs.get(exec)
    }

    fn process_mut(&mut self, exec: &str) -> Option<&mut ProcessState> {
        if exec.is_empty() {
            return Some(&mut self.init);
        }
        self.execs.get_mut(exec)
    }

    /// The init process.
    #[must_use]
    pub fn init(&self) -> &ProcessState {
        &self.init
    }

    /// Whether the processes are frozen; Thawed for a container that does not run.
    #[must_use]
    pub fn freeze(&self) -> Freeze {
        self.freeze
    }

    /// True while the command runs, frozen or not; false from the moment that init's exit is known.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.init.state == TaskState::Running && self.pending_init_exit.is_none()
    }

    /// True while init's exit is known and held back.
    #[must_use]
    pub fn is_init_exit_held(&self) -> bool {
        self.pending_init_exit.is_some()
    }

    /// True while init's exit is held back for the exits of exec processes.
    #[must_use]
    pub fn awaits_execs(&self) -> bool {
        self.pending_init_exit.is_some_and(|held| held.awaits_execs)
    }

    /// True if an exec process may be added or started.
    #[must_use]
    pub fn accepts_exec(&self) -> bool {
        match self.init.state {
            TaskState::Created | TaskState::Starting => {
                !self.init.deleting && self.pending_init_exit.is_none()
            }
            TaskState::Running => self.is_running() && self.freeze == Freeze::Thawed,
            TaskState::Creating | TaskState::Exiting | TaskState::Stopped => false,
        }
    }

    /// The container's state, as an error message names it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        if self.pending_init_exit.is_some() {
            TaskState::Stopped.name()
        } else if self.init.state == TaskState::Running {
            self.freeze.name()
        } else {
            self.init.state.name()
        }
    }

    fn rejected(&self) -> Rejected {
        Rejected { state: self.name() }
    }

    /// Takes an event; returns what to do about it, in order.
    ///
    /// # Errors
    /// [`Rejected`] if the event is not possible in this state, which then stays as it was.
    pub fn on(&mut self, event: Event) -> Result<Vec<Action>, Rejected> {
        let mut actions = Vec::new();
        match event {
            Event::Created => self.created(&mut actions)?,
            Event::CreateFailed => self.create_failed(&mut actions)?,
            Event::ExecAdded(exec) => self.exec_added(exec)?,
            Event::StartCalled(exec) => self.start_called(exec, &mut actions)?,
            Event::Started(exec) => self.started(exec, &mut actions)?,
            Event::StartFailed => self.start_failed(&mut actions)?,
            Event::ExecFailed(exec, exit) => self.exec_failed(exec, exit, &mut actions)?,
            Event::Exited(exec, exit) => self.exited(&exec, exit, &mut actions)?,
            Event::InitExitHoldExpired(lost) => self.hold_expired(lost, &mut actions),
            Event::OutputDrained(exec) => self.output_drained(exec, &mut actions)?,
            Event::InitOutputStalled => {
                self.release_init_exit(|held| held.awaits_output = false, &mut actions);
            }
            Event::DeleteCalled(exec) => self.delete_called(exec, &mut actions)?,
            Event::PauseCalled => {
                self.freeze_called(FreezeInput::Pause)?;
                actions.push(Action::FreezeInGuest);
            }
            Event::ResumeCalled => {
                self.freeze_called(FreezeInput::Resume)?;
                actions.push(Action::ThawInGuest);
            }
            Event::FreezeDone => self.freeze_answered(FreezeInput::Done, &mut actions)?,
            Event::FreezeFailed => self.freeze_answered(FreezeInput::Failed, &mut actions)?,
            Event::VmEnded(exit) => self.vm_ended(exit, &mut actions),
        }
        Ok(actions)
    }

    /// Moves one process by its table.
    fn advance(&mut self, exec: &str, input: Input) -> Result<TaskState, Rejected> {
        let rejected = self.rejected();
        let process = self.process_mut(exec).ok_or(rejected)?;
        let state = process.state.next(input).ok_or(process.rejected())?;
        process.state = state;
        Ok(state)
    }

    fn created(&mut self, actions: &mut Vec<Action>) -> Result<(), Rejected> {
        self.advance("", Input::Created)?;
        let watch = Action::WatchExit(String::new());
        if self.init.deleting {
            actions.extend([Action::RefuseCreate, watch, Action::KillInit]);
        } else {
            actions.extend([Action::ReportCreated, watch]);
        }
        Ok(())
    }

    fn create_failed(&mut self, actions: &mut Vec<Action>) -> Result<(), Rejected> {
        if self.init.state != TaskState::Creating {
            return Err(self.rejected());
        }
        self.init.state = TaskState::Stopped;
        actions.push(Action::RemoveContainer);
        Ok(())
    }

    fn exec_added(&mut self, exec: String) -> Result<(), Rejected> {
        if !self.accepts_exec() || exec.is_empty() || self.execs.contains_key(&exec) {
            return Err(self.rejected());
        }
        self.execs.insert(exec, ProcessState::new(TaskState::Created));
        Ok(())
    }

    fn start_called(&mut self, exec: String, actions: &mut Vec<Action>) -> Result<(), Rejected> {
        let rejected = self.rejected();
        let accepts_exec = self.accepts_exec();
        let process = self.process_mut(&exec).ok_or(rejected)?;
        if process.state != TaskState::Created || process.deleting {
            return Err(process.rejected());
        }
        if !exec.is_empty() && !accepts_exec {
            return Err(rejected);
        }
        self.advance(&exec, Input::Start)?;
        actions.push(Action::StartInGuest(exec));
        Ok(())
    }

    fn started(&mut self, exec: String, actions: &mut Vec<Action>) -> Result<(), Rejected> {
        let state = self.advance(&exec, Input::Started)?;
        actions.push(Action::ReportStarted(exec.clone()));
        if state == TaskState::Stopped {
            self.report_exit(&exec, actions);
        } else if !exec.is_empty() {
            // Init is watched since it was created.
            actions.push(Action::WatchExit(exec));
        }
        Ok(())
    }

    fn start_failed(&mut self, actions: &mut Vec<Action>) -> Result<(), Rejected> {
        let state = self.advance("", Input::StartFailed)?;
        actions.push(Action::ReportStartFailed(String::new()));
        if state == TaskState::Stopped {
            self.report_exit("", actions);
        }
        Ok(())
    }

    /// No TaskExit: the caller never saw a TaskStart.
    fn exec_failed(&mut self, exec: String, exit: Exit, actions: &mut Vec<Action>) -> Result<(), Rejected> {
        if exec.is_empty() {
            return Err(self.rejected());
        }
        self.advance(&exec, Input::NeverRan)?;
        if let Some(process) = self.process_mut(&exec) {
            process.exit.get_or_insert(exit);
        }
        actions.push(Action::ReportStartFailed(exec.clone()));
        self.settle_exit(&exec, actions);
        Ok(())
    }

    fn delete_called(&mut self, exec: String, actions: &mut Vec<Action>) -> Result<(), Rejected> {
        let rejected = self.rejected();
        let process = self.process_mut(&exec).ok_or(rejected)?;
        let may_delete = process.state.may_delete() || process.state == TaskState::Creating;
        if !may_delete || process.deleting {
            return Err(process.rejected());
        }
        process.deleting = true;
        match process.state {
            TaskState::Creating => actions.push(Action::CancelCreate),
            TaskState::Created if exec.is_empty() => actions.push(Action::KillInit),
            // The guest does not know it.
            TaskState::Created => {
                self.execs.remove(&exec);
                actions.push(Action::RemoveExec(exec, None));
            }
            TaskState::Stopped if !process.drained => actions.push(Action::LimitOutput(exec)),
            TaskState::Stopped | TaskState::Starting | TaskState::Exiting | TaskState::Running => {
                self.finish_delete(exec, actions);
            }
        }
        Ok(())
    }

    fn finish_delete(&mut self, exec: String, actions: &mut Vec<Action>) {
        let Some(process) = self.process(&exec) else {
            return;
        };
        if !process.deleting || !process.drained || process.state != TaskState::Stopped {
            return;
        }
        let exit = process.exit;
        if exec.is_empty() {
            actions.push(Action::RemoveContainer);
        } else {
            self.execs.remove(&exec);
            actions.push(Action::RemoveExec(exec, exit));
        }
    }

    fn freeze_called(&mut self, input: FreezeInput) -> Result<(), Rejected> {
        let next = self.freeze.next(input).filter(|_| self.is_running());
        self.freeze = next.ok_or(self.rejected())?;
        Ok(())
    }

    fn freeze_answered(&mut self, input: FreezeInput, actions: &mut Vec<Action>) -> Result<(), Rejected> {
        self.freeze = self.freeze.next(input).ok_or(self.rejected())?;
        let report = match (self.freeze, input) {
            (Freeze::Frozen, FreezeInput::Done) => Action::ReportPaused,
            (Freeze::Thawed, FreezeInput::Done) => Action::ReportResumed,
            (Freeze::Frozen | Freeze::Thawed | Freeze::Freezing | Freeze::Thawing, _) => return Ok(()),
        };
        if self.init.state == TaskState::Running {
            actions.push(report);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
