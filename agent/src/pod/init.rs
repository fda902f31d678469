//! The init of the pid namespace that a pod's containers share (`shareProcessNamespace` in Kubernetes). It is
//! forked when the first container asks for it, and lives as long as the guest. It only reaps: the kernel
//! does that for it. As every init, it can't be killed from inside its namespace.
//!
//! In a pod with a user namespace it is forked by Setup: then it is the process by which the agent and the
//! containers find that namespace and those that belong to it (`super::users`).
//!
//! It is a copy of the agent, so it is undumpable: a container can't ptrace it or follow /proc/1/root into
//! the guest, unless it has CAP_SYS_PTRACE in the guest's initial user namespace, and then only the VM isolates
//! it anyway.

use std::fs::{self, File};
use std::io::{PipeReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sched::CloneFlags;
use rustix::mount::mount_bind;
use rustix::process::{DumpableBehavior, Pid, Signal, kill_process};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::error::Error;
use crate::fork;
use crate::reaper::Reaper;

/// Exit status if the process could not be set up.
const FAILED: i32 = 255;
/// The process's name in ps(1), as under other runtimes.
const NAME: &std::ffi::CStr = c"pause";

/// Where the namespaces of an init with the pod's user namespace are mounted. A process that has entered that one
/// may not look at them in /proc: the init is undumpable.
const NAMESPACES: &str = "/run/nacre/ns";

/// The shared init, once there is one.
#[derive(Debug, Default, Clone)]
pub struct SharedInit(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    pid: Option<Pid>,
    /// It has the pod's user namespace: another init would have another one.
    has_users: bool,
}

impl SharedInit {
    /// The directory with the namespaces of the shared init, each under its name in `/proc/<pid>/ns`. The first
    /// call forks it.
    pub fn namespaces(&self, reaper: &Reaper) -> Result<PathBuf, Error> {
        let mut state = self.lock();
        if state.has_users {
            return Ok(NAMESPACES.into());
        }
        if let Some(pid) = state.pid {
            return Ok(namespaces_of(pid));
        }
        let pid = fork::into_namespaces(CloneFlags::CLONE_NEWPID, idle)
            .map_err(Error::system("forking the init of the pod's pid namespace"))?;
        self.watch(&mut state, pid, reaper);
        Ok(namespaces_of(pid))
    }

    /// Forks the shared init into a new user namespace and new namespaces of the types `others`, which belong to
    /// it. `map` writes the id maps of its user namespace; `root` is the user and group that it becomes then.
    pub fn fork_with_users(
        &self,
        reaper: &Reaper,
        others: CloneFlags,
        root: (u32, u32),
        map: impl FnOnce(Pid) -> Result<(), Error>,
    ) -> Result<Pid, Error> {
        let step = "forking the process with the pod's user namespace";
        let mut state = self.lock();
        let (mapped, mut notifier) = std::io::pipe().map_err(Error::system(step))?;
        let namespaces = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID | others;
        let pid =
            fork::into_namespaces(namespaces, || idle_as(root, &mapped)).map_err(Error::system(step))?;
        self.watch(&mut state, pid, reaper);
        map(pid)
            .and_then(|()| notifier.write_all(&[0]).map_err(Error::system(step)))
            .and_then(|()| mount_namespaces(pid))
            .inspect_err(|_| {
                // Ignore errors: the original one is returned.
                let _ = kill_process(pid, Signal::KILL);
            })?;
        state.has_users = true;
        Ok(pid)
    }

    fn watch(&self, state: &mut State, pid: Pid, reaper: &Reaper) {
        let this = self.clone();
        reaper.watch(pid, move |exit| {
            this.lock().pid = None;
            crate::report::to_console(&format!(
                "the init of the pod's pid namespace exited with {}",
                exit.status
            ));
        });
        state.pid = Some(pid);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The directory with the namespaces of process `pid`.
pub fn namespaces_of(pid: Pid) -> PathBuf {
    format!("/proc/{}/ns", pid.as_raw_nonzero()).into()
}

/// Mounts those of process `pid` that containers join.
fn mount_namespaces(pid: Pid) -> Result<(), Error> {
    fs::create_dir_all(NAMESPACES).map_err(Error::file("creating", NAMESPACES))?;
    ["user", "pid"].into_iter().try_for_each(|name| {
        let target = Path::new(NAMESPACES).join(name);
        File::create(&target).map_err(Error::file("creating", &target))?;
        mount_bind(namespaces_of(pid).join(name), &target).map_err(Error::system(format!(
            "mounting a namespace on {}",
            target.display()
        )))
    })
}

/// The child in a new user namespace, whose ids have no meaning before its maps are written.
fn idle_as((uid, gid): (u32, u32), mut mapped: &PipeReader) -> i32 {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let is_root = mapped.read_exact(&mut [0]).is_ok()
        && set_thread_groups(&[]).is_ok()
        && set_thread_res_gid(gid, gid, gid).is_ok()
        && set_thread_res_uid(uid, uid, uid).is_ok();
    if is_root { idle() } else { FAILED }
}

/// The child: never returns if it could be set up.
fn idle() -> i32 {
    fork::discard_children();
    let is_set_up = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok()
        && rustix::thread::set_name(NAME).is_ok()
        && rustix::process::chdir("/").is_ok()
        // A standalone agent is no init whose end the kernel would notice.
        && rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).is_ok()
        && fork::close_all().is_ok();
    if !is_set_up {
        return FAILED;
    }
    loop {
        nix::unistd::pause();
    }
}
