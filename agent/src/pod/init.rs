//! The init of the pid namespace that a pod's containers share (`shareProcessNamespace` in Kubernetes). It is
//! forked when the first container asks for it, and lives as long as the guest. It only reaps: the kernel
//! does that for it. As every init, it can't be killed from inside its namespace.
//!
//! It is a copy of the agent, so it is undumpable: a container can't ptrace it or follow /proc/1/root into
//! the guest, unless it has CAP_SYS_PTRACE, and then only the VM isolates it anyway.

use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{DumpableBehavior, Pid};

use crate::error::Error;
use crate::fork;
use crate::reaper::Reaper;

/// Exit status if the process could not be set up.
const FAILED: i32 = 255;
/// The process's name in ps(1), as under other runtimes.
const NAME: &std::ffi::CStr = c"pause";

/// The pid of the shared init, once there is one.
#[derive(Debug, Default)]
pub struct SharedInit(Arc<Mutex<Option<Pid>>>);

impl SharedInit {
    /// The shared init, which is forked by the first call.
    pub fn get(&self, reaper: &Reaper) -> Result<Pid, Error> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pid) = *known {
            return Ok(pid);
        }
        let pid = fork::into_pid_namespace(idle)
            .map_err(Error::system("forking the init of the pod's pid namespace"))?;
        let this = Arc::clone(&self.0);
        reaper.watch(pid, move |exit| {
            *this.lock().unwrap_or_else(PoisonError::into_inner) = None;
            crate::report::to_console(&format!(
                "the init of the pod's pid namespace exited with {}",
                exit.status
            ));
        });
        *known = Some(pid);
        Ok(pid)
    }
}

/// The child: never returns if it could be set up.
fn idle() -> i32 {
    fork::discard_children();
    let is_set_up = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok()
        && rustix::thread::set_name(NAME).is_ok()
        && rustix::process::chdir("/").is_ok()
        // A standalone agent is no init whose end the kernel would notice.
        && rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).is_ok()
        && fork::close_all().is_ok();
    if !is_set_up {
        return FAILED;
    }
    loop {
        nix::unistd::pause();
    }
}
