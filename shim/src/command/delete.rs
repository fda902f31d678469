//! `delete`: cleans up after a daemon that is gone, from `pod.json` alone; may run twice, and before anything was made.
//! containerd executes it at the end of every container, so where nothing is left it costs nothing.

use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use nacre_protocol::state::{Pod, STATE_ROOT};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::arguments::Arguments;
use crate::cgroup::Cgroup;
use crate::clock;
use crate::identity::Identity;
use crate::state;

/// The status of a task whose shim is gone: as if killed.
const LOST_STATUS: u32 = 137;
/// How long a killed process may take to end (its memory is freed).
const END_DEADLINE: Duration = Duration::from_secs(10);

/// Runs the command.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let bundle = match &arguments.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().context("working directory")?,
    };
    let address = match arguments.address.as_str() {
        "" => address_of(arguments),
        address => address.to_owned(),
    };
    let identity = Identity::new(&address, &arguments.namespace, &arguments.id, bundle);
    let pid = clean_up(&identity)?;
    unmount(&identity.bundle.join("rootfs"));
    let now = clock::realtime();
    let exited_at = Timestamp {
        seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(now.subsec_nanos()).unwrap_or_default(),
        ..Default::default()
    };
    let response = DeleteResponse {
        pid,
        exit_status: LOST_STATUS,
        exited_at: Some(exited_at).into(),
        ..Default::default()
    };
    std::io::stdout().write_all(&response.write_to_bytes()?)?;
    Ok(())
}

/// The address that the pod was started with, where this call does not say: pods are named by it.
fn address_of(arguments: &Arguments) -> String {
    let pods = std::fs::read_dir(STATE_ROOT).into_iter().flatten().flatten();
    pods.filter_map(|entry| state::read_pod(&entry.path()).ok().flatten())
        .find(|pod| pod.id == arguments.id && pod.namespace == arguments.namespace)
        .map(|pod| pod.containerd_address)
        .unwrap_or_default()
}

/// Ends what still runs of the pod and removes what is left of it; gives the VMM's pid, 0 where it is not known.
pub fn clean_up(identity: &Identity) -> anyhow::Result<u32> {
    let directory = identity.directory();
    if !directory.exists() {
        return Ok(0);
    }
    // A file that can't be read says nothing of what there is; the directory goes all the same.
    let pod = state::read_pod(&directory).unwrap_or_else(|error| {
        eprintln!("containerd-shim-nacre-v2: {error}");
        None
    });
    let pid = pod.as_ref().and_then(|pod| pod.vmm_pid).unwrap_or(0);
    if let Some(pod) = pod {
        end(&pod)?;
    }
    state::remove_directory(&directory)?;
    Ok(pid)
}

fn end(pod: &Pod) -> anyhow::Result<()> {
    let shim = find(pod.shim_pid, &["containerd-shim-nacre-v2"]);
    let vmm = pod.vmm_pid.and_then(|pid| find(pid, &["nacre-vmm"]));
    let cgroup = pod.cgroup.as_deref().map(Cgroup::at).transpose()?;
    // The shim first, so that it does not tell of the VMM's end as of a failure.
    for process in [&shim, &vmm].into_iter().flatten() {
        if let Err(error) = pidfd_send_signal(process, Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            return Err(error).context("killing what is left of the pod");
        }
    }
    if let Some(cgroup) = &cgroup {
        cgroup.kill()?;
    }
    for process in [shim, vmm].into_iter().flatten() {
        wait(&process)?;
    }
    if let Some(cgroup) = &cgroup {
        cgroup.remove()?;
    }
    Ok(())
}

/// The process `pid`, where its program is still one of `names`: pids are used again.
fn find(pid: u32, names: &[&str]) -> Option<OwnedFd> {
    if pid == std::process::id() {
        return None;
    }
    let raw = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let process = pidfd_open(raw, PidfdFlags::empty()).ok()?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    // A program that was replaced by an upgrade reads as "name (deleted)".
    let name = program.file_name()?.to_string_lossy().into_owned();
    names
        .iter()
        .any(|known| name.starts_with(known))
        .then_some(process)
}

fn wait(process: &OwnedFd) -> anyhow::Result<()> {
    let timeout = Timespec::try_from(END_DEADLINE).context("deadline")?;
    let ended = poll(
        &mut [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)],
        Some(&timeout),
    )?;
    anyhow::ensure!(
        ended > 0,
        "a killed process of the pod does not end within {} s",
        END_DEADLINE.as_secs()
    );
    Ok(())
}

/// containerd may have mounted a root there itself.
fn unmount(path: &Path) {
    use rustix::mount::{UnmountFlags, unmount};
    // Most often nothing is mounted there, or it is gone already.
    let _ = unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
}
