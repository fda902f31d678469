//! The command of a container's init, as libcontainer asks for it: found when init is set up, so that Create fails
//! where there is none; executed when the gate is open.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io::Write as _;

use libcontainer::oci_spec::runtime::{LinuxSeccomp, Spec};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};

use super::events;
use crate::command::{Command, reopen_null};

/// Exit status of a command that was found but not executed, as runc's.
const NOT_EXECUTED: i32 = 1;

/// Executes the command of a spec.
#[derive(Clone)]
pub struct CommandExecutor {
    find_home: bool,
    late_filter: Option<LinuxSeccomp>,
    /// What validation has found.
    command: OnceCell<Command>,
}

impl CommandExecutor {
    /// `find_home`: the spec's HOME is a placeholder for what the container's /etc/passwd says. `late_filter` is loaded
    /// when nothing but execve is left to be done.
    pub fn new(find_home: bool, late_filter: Option<LinuxSeccomp>) -> Self {
        Self {
            find_home,
            late_filter,
            command: OnceCell::new(),
        }
    }
}

impl Executor for CommandExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let refuse = |text: String| ExecutorValidationError::ArgValidationError(text);
        reopen_null().map_err(|error| refuse(format!("/dev/null: {error}")))?;
        let process = spec
            .process()
            .as_ref()
            .ok_or_else(|| refuse("no process".to_owned()))?;
        let command = Command::find(process, self.find_home).map_err(|text| {
            events::send_command_error(&text);
            refuse(text)
        })?;
        self.command
            .set(command)
            .map_err(|_| refuse("validated twice".to_owned()))
    }

    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment goes to execve as the spec has it, in its order.
        Ok(())
    }

    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let command = self.command.get().ok_or(ExecutorError::InvalidArg)?;
        let loaded = self.late_filter.as_ref().map_or(Ok(()), |filter| {
            initialize_seccomp(filter)
                .map(drop)
                .map_err(|error| error.to_string())
        });
        let Err(reason) =
            loaded.and_then(|()| command.execute().map_err(|reason| reason.desc().to_lowercase()));
        // Create has long been answered: this is for whoever reads the container's output.
        let _ = writeln!(std::io::stderr(), "exec {}: {reason}", command.path().display());
        std::process::exit(NOT_EXECUTED);
    }
}
