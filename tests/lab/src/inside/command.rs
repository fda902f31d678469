//! Starts the command and waits for it. As PID 1 the driver also reaps every orphaned process.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};

use crate::wire::Job;

/// The command, without its standard streams. With `session` it becomes a session leader whose controlling
/// terminal is its standard input.
pub fn prepare(job: &Job, environment: &[(OsString, OsString)], session: bool) -> Result<Command> {
    let (program, arguments) = job.command.split_first().context("the job contains no command")?;
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

/// The exit code, as a shell's, and the message for a command that could not be started.
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

/// Reaps all children until `pid` has ended; returns its exit code, or 128 + the signal that killed it.
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
