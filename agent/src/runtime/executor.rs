//! libcontainer's executor for the command of a container's init. `validate` finds the command while init is
//! set up, so that CreateContainer fails if it is missing; `exec` runs after the start notification.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io::Write as _;

use libcontainer::oci_spec::runtime::{LinuxSeccomp, Spec};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};

use super::error_log;
use crate::command::{Command, reopen_null};

/// Exit status of init if execve fails, as with runc.
const NOT_EXECUTED: i32 = 1;

/// Finds and executes the command of a spec.
#[derive(Clone)]
pub struct CommandExecutor {
    find_home: bool,
    late_filter: Option<LinuxSeccomp>,
    /// The command that `validate` has found.
    command: OnceCell<Command>,
}

impl CommandExecutor {
    /// With `find_home`, the spec's HOME is a placeholder and is looked up in the container's /etc/passwd.
    /// The seccomp filter `late_filter` is loaded right before execve.
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
            .ok_or_else(|| refuse("the spec has no process".to_owned()))?;
        let command = Command::find(process, self.find_home).map_err(|text| {
            error_log::send_command_error(&text);
            refuse(text)
        })?;
        self.command
            .set(command)
            .map_err(|_| refuse("validate was called twice".to_owned()))
    }

    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // `Command` passes the spec's environment to execve, in the spec's order.
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
        // CreateContainer has returned already, so the error goes to the container's standard error.
        let _ = writeln!(std::io::stderr(), "exec {}: {reason}", command.path().display());
        std::process::exit(NOT_EXECUTED);
    }
}
