//! The first process of the private namespaces on this machine. The command inherits the caller's standard
//! streams.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};

use super::{command, containerd, environment, mounts, template};
use crate::wire::Job;

/// Runs the job that the inherited file `fd` holds; returns the command's exit code.
pub fn main(fd: i32) -> Result<u8> {
    // /proc still belongs to the parent PID namespace; /proc/self works in it.
    let file = File::open(Path::new("/proc/self/fd").join(fd.to_string())).context("opening the job")?;
    let job: Job = serde_json::from_reader(file).context("reading the job")?;
    mounts::direct(&job)?;
    let environment = environment(&job, "direct");
    let template = template::begin(&job, &environment);
    containerd::start(&job, &environment)?;
    template::finish(template);
    let mut keys = SigSet::empty();
    keys.add(Signal::SIGINT);
    keys.add(Signal::SIGQUIT);
    keys.thread_unblock()?;
    let mut command = command::prepare(&job, &environment, false)?;
    let code = match command.spawn() {
        Ok(child) => command::wait_for(child.id())?,
        Err(error) => {
            let (code, text) = command::not_started(&job, &error);
            eprint!("{text}");
            code
        }
    };
    containerd::keep_log(&job)?;
    Ok(code)
}
