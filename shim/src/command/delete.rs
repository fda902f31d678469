//! `delete`: cleans up after a daemon that has exited; reads `pod.json` and nothing else. May run twice, and
//! before `start` has made anything. containerd executes it at the end of every container, so it returns
//! early if nothing is left.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message as _;
use nacre_pod::{Identity, clean_up, clock, recorded_address};

use crate::arguments::Arguments;
use crate::messages::timestamp;

/// The exit status of a task whose shim has exited: 128 + SIGKILL.
const LOST_STATUS: u32 = 137;

/// Runs the command and prints a `DeleteResponse`.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let bundle = match &arguments.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().context("working directory")?,
    };
    let address = match arguments.address.as_str() {
        "" => recorded_address(&arguments.namespace, &arguments.id),
        address => address.to_owned(),
    };
    let identity = Identity::new(&address, &arguments.namespace, &arguments.id, bundle);
    let cleaned = clean_up(&identity)?;
    if let Some(error) = cleaned.unreadable {
        eprintln!(
            "containerd-shim-nacre-v2: {error}: pod {} was removed, but its processes may still run",
            identity.id
        );
    }
    unmount(&identity.bundle.join("rootfs"));
    let response = DeleteResponse {
        pid: cleaned.vmm_pid,
        exit_status: LOST_STATUS,
        exited_at: Some(timestamp(clock::realtime_ns())).into(),
        ..Default::default()
    };
    std::io::stdout().write_all(&response.write_to_bytes()?)?;
    Ok(())
}

/// Unmounts a root file system that containerd may have mounted in the bundle.
fn unmount(path: &Path) {
    use rustix::mount::{UnmountFlags, unmount};
    // Fails if nothing is mounted there, which is the usual case.
    let _ = unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
}
