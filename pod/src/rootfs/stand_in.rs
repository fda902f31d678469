//! For tests: a process that stands in for the VMM, and placements for its tree. All of it needs root.

use std::io::{self, PipeWriter, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use super::Placement;
use crate::sys;

/// A process whose root is a tmpfs in its own mount namespace.
pub struct StandIn {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    /// The process exits when this is closed.
    running: Option<PipeWriter>,
    _mount_point: tempfile::TempDir,
}

impl StandIn {
    /// `prepare` runs in the process, in the tmpfs, which is then made read-only if so asked.
    pub fn start(is_read_only: bool, prepare: fn() -> io::Result<()>) -> Self {
        let mount_point = tempfile::tempdir().unwrap();
        let (mut ready, mut ready_sender) = io::pipe().unwrap();
        let (mut stop, running) = io::pipe().unwrap();
        let held = running.try_clone().unwrap();
        let path = mount_point.path();
        let pid = sys::fork_into(move || {
            drop(running);
            enter_tmpfs(path).unwrap();
            prepare().unwrap();
            if is_read_only {
                let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
                mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
                assert!(std::fs::create_dir("/x").is_err(), "the root is writable");
            }
            ready_sender.write_all(b"r").unwrap();
            drop(ready_sender);
            let _ = stop.read(&mut [0]);
            0
        })
        .unwrap();
        ready.read_exact(&mut [0]).expect("the stand-in failed");
        let pid = Pid::from_raw(pid.as_raw()).unwrap();
        Self {
            pid,
            pidfd: pidfd_open(pid, PidfdFlags::empty()).unwrap(),
            running: Some(held),
            _mount_point: mount_point,
        }
    }

    /// A path of the stand-in's tree, as this process can look it up.
    pub fn path(&self, relative: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid.as_raw_nonzero())).join(relative)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.running.take());
        // Another test's child may hold a copy of the pipe.
        let _ = rustix::process::kill_process(self.pid, rustix::process::Signal::KILL);
        let _ = waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED);
    }
}

fn enter_tmpfs(mount_point: &Path) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    mount(
        Some("none"),
        mount_point,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    nix::unistd::chdir(mount_point)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")
}

/// A detached bind of `source` for the mount point `target`.
pub fn placement(source: &Path, target: &str) -> Placement {
    let bound = super::detached::bind(source, crate::mount::Extent::default(), None).unwrap();
    Placement {
        target: target.into(),
        is_directory: bound.is_directory,
        mounts: vec![bound.mount],
    }
}

pub fn is_root() -> bool {
    let is_root = rustix::process::getuid().is_root();
    if !is_root {
        println!("skipped: needs root");
    }
    is_root
}
