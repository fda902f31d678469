//! `delete`: cleans up after a daemon that is gone, from `pod.json` alone; may run twice, and before anything was made.
//! containerd executes it at the end of every container, so where nothing is left it costs nothing.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message as _;
use nacre_pod::{Identity, clean_up, clock, recorded_address};

use crate::arguments::Arguments;
use crate::messages::timestamp;

/// The status of a task whose shim is gone: as if killed.
const LOST_STATUS: u32 = 137;
/// Runs the command.
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
            "containerd-shim-nacre-v2: {error}; processes of pod {} may be left",
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

/// containerd may have mounted a root there itself.
fn unmount(path: &Path) {
    use rustix::mount::{UnmountFlags, unmount};
    // Most often nothing is mounted there, or it is gone already.
    let _ = unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
}
