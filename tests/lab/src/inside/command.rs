//! The command's process: found in PATH, waited for among all that PID 1 has to reap.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};

use crate::wire::Job;

/// The command, ready but for its streams. With a terminal on its standard input it becomes that terminal's session.
pub fn prepare(job: &Job, environment: &[(OsString, OsString)], session: bool) -> Result<Command> {
    let (program, arguments) = job.command.split_first().context("the job has no command")?;
    let mut command;
    if session {
        command = Command::new("setsid");
        command.arg("--ctty").arg("--").arg(program);
    } else {
        command = Command::new(program);
    }
    command
        .args(arguments)
        .env_clear()
        .envs(environment.iter().cloned())
        .current_dir(&job.checkout);
    Ok(command)
}

/// A shell's code for a command that could not be started.
pub fn not_started(job: &Job, error: &std::io::Error) -> (u8, String) {
    let name = job
        .command
        .first()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let code = if error.kind() == std::io::ErrorKind::NotFound {
        127
    } else {
        126
    };
    (code, format!("lab: {name}: {error}\n"))
}

/// Reaps children, of whomever, until `pid` is among them; gives its exit code as a shell says it.
pub fn wait_for(pid: u32) -> Result<u8> {
    let wanted = i32::try_from(pid)?;
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == wanted => {
                return Ok(u8::try_from(code & 0xff)?);
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == wanted => {
                return Ok(u8::try_from(128 + (signal as i32))?);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the command"),
        }
    }
}
