//! Mounts and cgroup controllers: those that the VM's initramfs does not set up, and the directories that are
//! private to a run.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

use super::run_quietly;
use crate::wire::{Job, TAG_TARGET};

/// containerd's directory.
const CONTAINERD: &str = "/var/lib/containerd";

/// The size of its file system, if that is ext4, bytes. The image in memory is sparse.
const EXT4_SIZE: u64 = 4 << 30;

/// Directories that get a private tmpfs in a run on this machine.
const PRIVATE: [&str; 3] = ["/run/containerd", "/run/nacre", CONTAINERD];

/// The same, if containerd runs pods.
const PRIVATE_OF_PODS: [&str; 2] = ["/run/netns", "/var/lib/cni"];

/// Mounts the VM's file systems. containerd's directories are on tmpfs because overlayfs cannot stack on the
/// VM's overlay.
pub fn vm(job: &Job) -> Result<()> {
    // Shared propagation, as under systemd.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SHARED,
        None::<&str>,
    )?;
    mount_new("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666")?;
    mount_new("tmpfs", "/dev/shm", "mode=1777")?;
    mount_new("mqueue", "/dev/mqueue", "")?;
    mount_new("tmpfs", "/run", "mode=755")?;
    mount_new("tmpfs", CONTAINERD, "mode=711")?;
    mount_new("cgroup2", "/sys/fs/cgroup", "")?;
    mount_new("debugfs", "/sys/kernel/debug", "")?;
    mount_from(TAG_TARGET, "virtiofs", &job.target, "")?;
    private_configuration(job)?;
    modules(job)?;
    ext4(job)?;
    controllers()
}

/// Mounts the private directories in the mount namespace of a run on this machine.
pub fn direct(job: &Job) -> Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SHARED,
        None::<&str>,
    )?;
    mount_new("proc", "/proc", "")?;
    let pods: &[&str] = if job.pod_images.is_empty() {
        &[]
    } else {
        &PRIVATE_OF_PODS
    };
    for directory in PRIVATE.iter().chain(pods) {
        mount_new("tmpfs", directory, "mode=711")?;
    }
    ext4(job)?;
    private_configuration(job)
}

/// Gives this run its own copy of the installation's `etc`: a test that writes config.toml changes neither the
/// installation nor the pods of a lab beside it.
fn private_configuration(job: &Job) -> Result<()> {
    let installation = job.prefix();
    if !installation.is_dir() {
        return Ok(());
    }
    let directory = installation.join("etc");
    let file = directory.join("nacre/config.toml");
    let configured = match fs::read(&file) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    mount_from("tmpfs", "tmpfs", &directory, "mode=755")?;
    fs::create_dir(directory.join("nacre"))?;
    if let Some(text) = configured {
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// Covers the tmpfs of containerd's files by a new ext4 file system, whose image is in that tmpfs, if `job` wants it.
fn ext4(job: &Job) -> Result<()> {
    if !job.ext4 {
        return Ok(());
    }
    run_quietly("modprobe", &["-a", "loop", "ext4"])?;
    let image = format!("{CONTAINERD}/image");
    fs::File::create_new(&image)?.set_len(EXT4_SIZE)?;
    let initialised = "lazy_itable_init=0,lazy_journal_init=0";
    run_quietly("mkfs.ext4", &["-q", "-F", "-E", initialised, &image])?;
    run_quietly("mount", &["-o", "loop", &image, CONTAINERD])
}

fn mount_new(kind: &str, target: &str, options: &str) -> Result<()> {
    mount_from(kind, kind, Path::new(target), options)
}

fn mount_from(source: &str, kind: &str, target: &Path, options: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("creating {}", target.display()))?;
    mount(Some(source), target, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mounting {kind} at {}", target.display()))
}

/// Makes the kernel's modules available, so that it loads those that a command needs (tun, bridge, loop, …).
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

/// Enables every cgroup controller for the children of the root cgroup.
fn controllers() -> Result<()> {
    let names = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    let enable: Vec<String> = names.split_whitespace().map(|name| format!("+{name}")).collect();
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", enable.join(" "))
        .with_context(|| format!("enabling the controllers {names}"))
}
