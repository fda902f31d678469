//! How processes end in a container's state machine: exits, the hold of init's, and output that is still to be
//! written.

use super::{Action, Exit, Input, Lifecycle, ProcessState, Rejected, TaskState};

/// Init's exit, while it is held, and what it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HeldExit {
    pub(super) exit: Exit,
    pub(super) awaits_execs: bool,
    pub(super) awaits_output: bool,
}

impl Lifecycle {
    pub(super) fn exited(
        &mut self,
        exec: &str,
        exit: Exit,
        actions: &mut Vec<Action>,
    ) -> Result<(), Rejected> {
        if exec.is_empty() && self.init.state.may_exit() {
            self.init_exited(exit, actions);
            return Ok(());
        }
        let rejected = self.rejected();
        let process = self.process_mut(exec).ok_or(rejected)?;
        if !exec.is_empty() && process.state == TaskState::Created {
            return Err(process.rejected());
        }
        let state = process.state.next(Input::Exited).ok_or(process.rejected())?;
        process.state = state;
        process.exit = Some(exit);
        actions.push(Action::CloseStdin(exec.to_owned()));
        if state == TaskState::Stopped {
            self.report_exit(exec, actions);
        }
        Ok(())
    }

    fn init_exited(&mut self, exit: Exit, actions: &mut Vec<Action>) {
        // The first exit counts; the VM's end may follow it.
        if self.pending_init_exit.is_some() {
            return;
        }
        let awaits_execs = self.has_live_execs();
        self.pending_init_exit = Some(HeldExit {
            exit,
            awaits_execs,
            // An init that was never started has written nothing.
            awaits_output: self.init.state != TaskState::Created,
        });
        actions.extend([
            Action::CloseStdin(String::new()),
            Action::AwaitOutput(String::new()),
        ]);
        if awaits_execs {
            actions.push(Action::HoldInitExit);
        }
        self.release_init_exit(|_| {}, actions);
    }

    pub(super) fn report_exit(&mut self, exec: &str, actions: &mut Vec<Action>) {
        if let Some(exit) = self.process(exec).and_then(|process| process.exit) {
            actions.push(Action::ReportExit(exec.to_owned(), exit));
        }
        self.settle_exit(exec, actions);
    }

    /// What follows a process's end, reported or not: waiters are answered, output is awaited, a held exit of
    /// init may go.
    pub(super) fn settle_exit(&mut self, exec: &str, actions: &mut Vec<Action>) {
        if let Some(exit) = self.process(exec).and_then(ProcessState::end) {
            actions.push(Action::AnswerWaiters(exec.to_owned(), exit));
        }
        if exec.is_empty() {
            // Its output is awaited since its exit.
            self.report_all_drained(actions);
        } else {
            actions.push(Action::AwaitOutput(exec.to_owned()));
        }
        if self
            .process(exec)
            .is_some_and(|process| process.deleting && !process.drained)
        {
            // Delete was called before: its wait for output begins now.
            actions.push(Action::LimitOutput(exec.to_owned()));
        }
        self.finish_delete(exec.to_owned(), actions);
        if !self.has_live_execs() {
            self.release_init_exit(|held| held.awaits_execs = false, actions);
        }
    }

    /// Changes what init's held exit waits for, and reports the exit if that is nothing more.
    pub(super) fn release_init_exit(
        &mut self,
        change: impl FnOnce(&mut HeldExit),
        actions: &mut Vec<Action>,
    ) {
        let Some(held) = &mut self.pending_init_exit else {
            return;
        };
        change(held);
        if held.awaits_execs || held.awaits_output {
            return;
        }
        let exit = held.exit;
        self.pending_init_exit = None;
        let Some(state) = self.init.state.next(Input::Exited) else {
            return;
        };
        self.init.state = state;
        self.init.exit = Some(exit);
        if state == TaskState::Stopped {
            self.report_exit("", actions);
        }
    }

    pub(super) fn hold_expired(&mut self, lost: Exit, actions: &mut Vec<Action>) {
        let Some(held) = self.pending_init_exit.filter(|held| held.awaits_execs) else {
            return;
        };
        let exit = Exit {
            at_ns: held.exit.at_ns,
            ..lost
        };
        self.end_execs(exit, actions);
        // An exec process whose start the guest has not answered is reported when it does; init waits no
        // longer.
        self.release_init_exit(|held| held.awaits_execs = false, actions);
    }

    pub(super) fn vm_ended(&mut self, exit: Exit, actions: &mut Vec<Action>) {
        self.end_execs(exit, actions);
        if self.init.state.may_exit() {
            // Possible in every state that may exit, so never rejected.
            let _ = self.exited("", exit, actions);
        }
    }

    fn end_execs(&mut self, exit: Exit, actions: &mut Vec<Action>) {
        let live = |process: &ProcessState| process.state.is_live() && process.state.may_exit();
        let execs: Vec<String> = self
            .execs
            .iter()
            .filter(|(_, process)| live(process))
            .map(|(exec, _)| exec.clone())
            .collect();
        for exec in execs {
            // Possible in every live state, so never rejected.
            let _ = self.exited(&exec, exit, actions);
        }
    }

    pub(super) fn has_live_execs(&self) -> bool {
        self.execs.values().any(|process| process.state.is_live())
    }

    pub(super) fn output_drained(&mut self, exec: String, actions: &mut Vec<Action>) -> Result<(), Rejected> {
        let rejected = self.rejected();
        let is_held = exec.is_empty() && self.pending_init_exit.is_some();
        let process = self.process_mut(&exec).ok_or(rejected)?;
        if process.exit.is_none() && !is_held {
            return Err(process.rejected());
        }
        let was_drained = std::mem::replace(&mut process.drained, true);
        if is_held {
            self.release_init_exit(|held| held.awaits_output = false, actions);
        } else if !was_drained {
            self.report_all_drained(actions);
            self.finish_delete(exec, actions);
        }
        Ok(())
    }

    /// Reports that everything which was started has exited, with its output written, if that is so.
    fn report_all_drained(&self, actions: &mut Vec<Action>) {
        let is_drained = |process: &ProcessState| process.drained || process.state != TaskState::Stopped;
        let init_ended = self.init.state == TaskState::Stopped && self.init.drained;
        if init_ended && self.execs.values().all(is_drained) {
            actions.push(Action::AllDrained);
        }
    }
}
