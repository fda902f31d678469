//! Mounts and cgroups: what the VM has not got from its initramfs, and what containerd is to have for itself.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

use crate::wire::{Job, TAG_TARGET};

/// Directories that are private to a run, and in memory: overlayfs can't stack on the VM's own overlay.
const PRIVATE: [&str; 3] = ["/run/containerd", "/run/nacre", "/var/lib/containerd"];

/// All mounts of the VM.
pub fn vm(job: &Job) -> Result<()> {
    // Mount propagation is as systemd makes it.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SHARED,
        None::<&str>,
    )?;
    fresh("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666")?;
    fresh("tmpfs", "/dev/shm", "mode=1777")?;
    fresh("mqueue", "/dev/mqueue", "")?;
    fresh("tmpfs", "/run", "mode=755")?;
    fresh("tmpfs", "/var/lib/containerd", "mode=711")?;
    fresh("cgroup2", "/sys/fs/cgroup", "")?;
    fresh("debugfs", "/sys/kernel/debug", "")?;
    fresh_from(TAG_TARGET, "virtiofs", &job.target, "")?;
    modules(job)?;
    controllers()
}

/// The mounts of a private mount namespace on this machine.
pub fn direct() -> Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SHARED,
        None::<&str>,
    )?;
    fresh("proc", "/proc", "")?;
    for directory in PRIVATE {
        fresh("tmpfs", directory, "mode=711")?;
    }
    Ok(())
}

fn fresh(kind: &str, target: &str, options: &str) -> Result<()> {
    fresh_from(kind, kind, Path::new(target), options)
}

fn fresh_from(source: &str, kind: &str, target: &Path, options: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("making {}", target.display()))?;
    mount(Some(source), target, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mounting {kind} at {}", target.display()))
}

/// The kernel loads by itself what a command needs (tun, bridge, loop, …).
fn modules(job: &Job) -> Result<()> {
    let Some(modules) = &job.modules else {
        return Ok(());
    };
    fs::create_dir_all("/lib/modules")?;
    mount(
        Some(modules),
        "/lib/modules",
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("binding {}", modules.display()))
}

/// Every controller for the children of the root.
fn controllers() -> Result<()> {
    let names = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    let enable: Vec<String> = names.split_whitespace().map(|name| format!("+{name}")).collect();
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", enable.join(" "))
        .with_context(|| format!("enabling the controllers {names}"))
}
