//! `hooks.startContainer`: programs of the container that run before its command, with the container's state
//! on their standard input. Called by the init after the start notification.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use oci_spec::runtime::{Hook, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;

/// Runs the hooks of `spec` one after another, for container `id`. Hooks without an environment get
/// `environment`.
///
/// # Errors
/// The hook that failed, and why; those after it do not run.
pub fn run(spec: &Spec, id: &str, environment: &[String]) -> Result<(), String> {
    let hooks = spec.hooks().as_ref();
    let hooks = hooks.and_then(|hooks| hooks.start_container().as_ref());
    for hook in hooks.into_iter().flatten() {
        run_one(hook, &state(spec, id), environment)
            .map_err(|reason| format!("hook {}: {reason}", hook.path().display()))?;
    }
    Ok(())
}

/// The state of the OCI specification, as the container sees itself.
fn state(spec: &Spec, id: &str) -> String {
    let root = spec.root().as_ref().map(|root| root.path().clone());
    let bundle = root.unwrap_or_default();
    json!({
        "ociVersion": spec.version(),
        "id": id,
        "status": "created",
        "pid": std::process::id(),
        "bundle": bundle.parent(),
        "annotations": spec.annotations().clone().unwrap_or_default(),
    })
    .to_string()
}

fn run_one(hook: &Hook, state: &str, environment: &[String]) -> Result<(), String> {
    let mut command = Command::new(hook.path());
    let arguments = hook.args().as_deref().unwrap_or_default();
    if let Some((name, others)) = arguments.split_first() {
        command.arg0(name).args(others);
    }
    let environment = hook.env().as_deref().unwrap_or(environment);
    let variables = environment.iter().filter_map(|variable| variable.split_once('='));
    let input = input(state).map_err(|error| format!("its input: {error}"))?;
    command
        .env_clear()
        .envs(variables)
        .stdin(input)
        .stdout(Stdio::null());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    if let Some(seconds) = hook.timeout() {
        wait_at_most(&mut child, seconds)?;
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() {
        Ok(())
    } else {
        Err(status.to_string())
    }
}

/// `state` as a file: a pipe that the hook does not read could become full.
fn input(state: &str) -> std::io::Result<File> {
    let mut file = File::from(memfd_create("state", MemfdFlags::CLOEXEC)?);
    file.write_all(state.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// Kills `child` if it runs for more than `seconds`.
fn wait_at_most(child: &mut Child, seconds: i64) -> Result<(), String> {
    let failed = |error: Errno| error.to_string();
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or("no pid")?;
    let exit = pidfd_open(pid, PidfdFlags::empty()).map_err(failed)?;
    let deadline = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    if poll(&mut [PollFd::new(&exit, PollFlags::IN)], Some(&deadline)).map_err(failed)? > 0 {
        return Ok(());
    }
    // Ignore errors: it has exited meanwhile.
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("timed out after {seconds} s"))
}
