//! The driver's role where the command runs: mounts file systems, starts containerd, imports the image, runs
//! the command. The VM and this machine differ in the mounts and the standard streams only.

pub mod cni;
pub mod command;
pub mod containerd;
pub mod cri;
pub mod direct;
pub mod mounts;
pub mod snapshotter;
pub mod template;
pub mod vm;

use std::ffi::OsString;

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::wire::Job;

/// containerd's address: the default, because its directories are private to the run.
pub const ADDRESS: &str = "/run/containerd/containerd.sock";

/// The environment of containerd and of the command: the caller's, with Nacre and the chosen containerd first
/// in PATH. `place` is `vm` or `direct`.
pub fn environment(job: &Job, place: &str) -> Vec<(OsString, OsString)> {
    let ours = [
        "PATH",
        "CONTAINERD_ADDRESS",
        "CONTAINERD_NAMESPACE",
        "CONTAINERD_SNAPSHOTTER",
        "NOTIFY_SOCKET",
        "NACRE_LAB",
        "NACRE_LAB_CONTAINERD",
    ];
    let get = |name: &str| {
        job.environment
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
    };
    let callers = get("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let mut path = job.prefix().join("bin").into_os_string();
    if !std::env::split_paths(&callers).any(|directory| directory == job.containerd) {
        path.push(":");
        path.push(&job.containerd);
    }
    if let Some(directory) = &job.erofs {
        path.push(":");
        path.push(directory);
    }
    path.push(":");
    path.push(&callers);
    let mut environment: Vec<(OsString, OsString)> = job
        .environment
        .iter()
        .filter(|(key, _)| !ours.iter().any(|name| key == name))
        .cloned()
        .collect();
    environment.push(("PATH".into(), path));
    environment.push(("CONTAINERD_ADDRESS".into(), ADDRESS.into()));
    environment.push(("NACRE_LAB".into(), place.into()));
    if let Some(snapshotter) = job.snapshotter {
        // The default of ctr's option --snapshotter.
        environment.push(("CONTAINERD_SNAPSHOTTER".into(), snapshotter.name().into()));
    }
    let version = job.containerd_version.clone();
    environment.push(("NACRE_LAB_CONTAINERD".into(), version.into()));
    environment
}

/// Runs a program without input.
fn run_quietly(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("starting {program}"))?;
    ensure!(
        status.success(),
        "{program} {} failed ({status})",
        arguments.join(" ")
    );
    Ok(())
}
