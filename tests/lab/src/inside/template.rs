//! The template of pods without limits, made while containerd starts: otherwise a process of its own would make
//! it during the first test.

use std::ffi::OsString;
use std::process::{Child, Command, Stdio};

use crate::wire::Job;

/// Begins to make the template, if Nacre is installed.
pub fn begin(job: &Job, environment: &[(OsString, OsString)]) -> Option<Child> {
    let mut command = Command::new(job.prefix().join("bin/nacre"));
    command.args(["template", "build"]).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.env_clear().envs(environment.iter().cloned());
    command.spawn().ok()
}

/// Waits until it is made. If it can't be, says why: pods then boot.
pub fn finish(making: Option<Child>) {
    let Some(making) = making else { return };
    match making.wait_with_output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => eprintln!("lab: {}", String::from_utf8_lossy(&output.stderr).trim_end()),
        Err(error) => eprintln!("lab: making a template: {error}"),
    }
}
