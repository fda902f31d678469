//! The host's half of a run on this machine: the other half is the first process of a private PID and mount namespace, so
//! that everything ends with it, and containerd's directories are its own.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::machine::{inherit, mortal};
use crate::{Arguments, parts, terminal};

/// Runs the command on this machine; gives its exit code.
pub fn run(arguments: &Arguments, checkout: &Path) -> Result<u8> {
    let job = parts::job(arguments, checkout)?;
    std::fs::create_dir_all(&job.target)?;
    if terminal::wanted() {
        // ^C is the command's, as in the VM; the other half unblocks it.
        let mut keys = SigSet::empty();
        keys.add(Signal::SIGINT);
        keys.add(Signal::SIGQUIT);
        keys.thread_block()?;
    }
    let mut file = File::from(memfd_create("nacre-lab-job", MemfdFlags::CLOEXEC)?);
    serde_json::to_writer(&file, &job)?;
    file.seek(SeekFrom::Start(0))?;
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)
        .context("making a private PID and mount namespace (the lab needs root)")?;
    let status = mortal(std::env::current_exe()?)
        .args(["--inside-direct", &inherit(&file)?])
        .status()
        .context("starting the lab's other half")?;
    match status.code() {
        Some(code) => Ok(u8::try_from(code)?),
        None => bail!("the lab's other half ended by signal {:?}", status.signal()),
    }
}
