//! The shim's own cgroup. While the VM of a Kubernetes pod runs, the shim is in the pod's cgroup: it is
//! counted there, as the overhead of a RuntimeClass expects. It goes back to where containerd started it before
//! that cgroup is removed, which may be long before the shim exits.
//!
//! The shim of a single container (`ctr run`, nerdctl) stays where it is: nobody counts its overhead, and its
//! logging program and hooks, which inherit its cgroup, may outlive the container.
//!
//! A child writes the shim's pid to cgroup.procs, because the kernel makes the writer wait for an RCU grace
//! period: on the way in while the guest boots, on the way out while the VMM exits.
//!
//! ```text
//! Home ─VM started─▶ Entering ─ShimMoved─▶ InPod ─VM ends─▶ Leaving ─ShimMoved─▶ Home
//!                       └──VM ends: leaves when it has entered──▲
//! ```

use std::path::PathBuf;
use std::{fs, io};

use super::Sandbox;
use super::queue::Event;
use crate::cgroup;
use crate::log;
use crate::pod_spec::Lifetime;

/// The OOM killer's preference for a shim in its pod's cgroup. At the pod's limit the VMM is to be killed,
/// whose adjustment is -997 or more in Kubernetes: the shim then reports why the pod ended. -998 is what a shim
/// has outside, if containerd runs with -999, as its systemd unit says.
const OOM_SCORE_ADJ: i32 = -998;

/// Where the shim is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum ShimPlace {
    /// Where containerd started it.
    #[default]
    Home,
    /// A child moves it into the pod's cgroup, from this one.
    Entering(PathBuf),
    /// In the pod's cgroup; it came from this one.
    InPod(PathBuf),
    /// A child moves it back.
    Leaving,
}

impl Sandbox {
    /// The VM was started: moves the shim into its cgroup.
    pub(super) fn enter_cgroup(&mut self) {
        let Some(cgroup) = &self.cgroup else { return };
        if self.spec.lifetime == Lifetime::Container {
            return;
        }
        let home = match cgroup::own_cgroup() {
            Ok(home) => home,
            Err(error) => return log::warn(format_args!("the shim's cgroup: {error}")),
        };
        if let Err(error) = lower_oom_score_adj() {
            // Without CAP_SYS_RESOURCE. The VMM then has no low adjustment, either, and more memory.
            log::warn(format_args!("lowering the shim's oom_score_adj: {error}"));
        }
        self.shim_place = ShimPlace::Entering(home);
        let (pid, to) = (std::process::id(), vec![cgroup.path().to_owned()]);
        self.queue
            .send_result(async move { Event::ShimMoved(cgroup::move_process(pid, to).await) });
    }

    /// The VM ends: moves the shim out of its cgroup.
    pub(super) fn leave_cgroup(&mut self) {
        let ShimPlace::InPod(home) = &self.shim_place else {
            return;
        };
        let home = home.clone();
        self.shim_place = ShimPlace::Leaving;
        // The cgroup that containerd runs in may have been removed when containerd was restarted.
        let root = cgroup::root().unwrap_or_default();
        let (pid, to) = (std::process::id(), vec![home, root]);
        self.queue
            .send_result(async move { Event::ShimMoved(cgroup::move_process(pid, to).await) });
    }

    /// The shim has entered or left the pod's cgroup, or could not.
    pub(super) fn shim_moved(&mut self, moved: Result<(), String>) {
        let place = std::mem::take(&mut self.shim_place);
        match (place, moved) {
            (ShimPlace::Entering(home), Ok(())) => self.shim_place = ShimPlace::InPod(home),
            (ShimPlace::Entering(_), Err(reason)) => {
                log::warn(format_args!(
                    "the shim stays outside of the pod's cgroup: {reason}"
                ));
            }
            (_, Ok(())) => {}
            // The command `delete` removes the cgroup when the shim has exited.
            (_, Err(reason)) => log::error(format_args!("leaving the pod's cgroup: {reason}")),
        }
        if self.vm.is_none() || self.closing {
            self.leave_cgroup();
        }
        self.remove_cgroup();
    }
}

/// Sets this process's [`OOM_SCORE_ADJ`], unless it has a lower one.
fn lower_oom_score_adj() -> io::Result<()> {
    let file = "/proc/self/oom_score_adj";
    let known: i32 = fs::read_to_string(file)?
        .trim()
        .parse()
        .map_err(io::Error::other)?;
    if known > OOM_SCORE_ADJ {
        fs::write(file, OOM_SCORE_ADJ.to_string())?;
    }
    Ok(())
}
