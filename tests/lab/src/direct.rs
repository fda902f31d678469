//! Runs the command on this machine, without a VM: starts `inside::direct` as the first process of a private
//! PID and mount namespace, so that every process ends with it and containerd's directories are private to
//! the run.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::machine::{inherit, with_death_signal};
use crate::{Arguments, parts, terminal};

/// Runs the command on this machine and returns its exit code.
pub fn run(arguments: &Arguments, checkout: &Path) -> Result<u8> {
    let job = parts::job(arguments, checkout)?;
    std::fs::create_dir_all(&job.target)?;
    if terminal::wanted() {
        // ^C goes to the command, as in the VM: ignored here, unblocked by inside::direct.
        let mut keys = SigSet::empty();
        keys.add(Signal::SIGINT);
        keys.add(Signal::SIGQUIT);
        keys.thread_block()?;
    }
    let mut file = File::from(memfd_create("nacre-lab-job", MemfdFlags::CLOEXEC)?);
    serde_json::to_writer(&file, &job)?;
    file.seek(SeekFrom::Start(0))?;
    let mut private = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
    if arguments.cri {
        // The pods' bridge, addresses and iptables rules are not this machine's.
        private |= CloneFlags::CLONE_NEWNET;
    }
    unshare(private).context("creating a private PID and mount namespace (the lab needs root)")?;
    let status = with_death_signal(std::env::current_exe()?)
        .args(["--inside-direct", &inherit(&file)?])
        .status()
        .context("starting nacre-lab in the private namespaces")?;
    match status.code() {
        Some(code) => Ok(u8::try_from(code)?),
        None => bail!(
            "nacre-lab was killed in the private namespaces by signal {:?}",
            status.signal()
        ),
    }
}
