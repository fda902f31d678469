//! Mounts moved into the namespace of a child that stands in for the VMM. All tests need root.

use super::*;
use std::io::{PipeWriter, Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::unshare;
use nix::sys::stat::Mode as NixMode;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

/// A process whose root is a tmpfs in its own mount namespace.
struct StandIn {
    pid: Pid,
    pidfd: OwnedFd,
    /// The process exits when this is closed.
    running: Option<PipeWriter>,
    _mount_point: tempfile::TempDir,
}

impl StandIn {
    /// `prepare` runs in the process, in the tmpfs, which is then made read-only if so asked.
    fn start(is_read_only: bool, prepare: fn() -> io::Result<()>) -> Self {
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
    fn path(&self, relative: &str) -> PathBuf {
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
fn placement(source: &Path, target: &str) -> Placement {
    let bound = super::super::detached::bind(source, crate::mount::Extent::default()).unwrap();
    Placement {
        target: target.into(),
        is_directory: bound.is_directory,
        mounts: vec![bound.mount],
    }
}

fn is_root() -> bool {
    let is_root = rustix::process::getuid().is_root();
    if !is_root {
        println!("skipped: needs root");
    }
    is_root
}

#[tokio::test]
async fn mounts_arrive_in_a_writable_and_in_a_read_only_root() {
    if !is_root() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let file = source.path().join("file");
    std::fs::write(&file, "text").unwrap();
    for is_read_only in [false, true] {
        let vmm = StandIn::start(is_read_only, || Ok(()));
        // A second time over the first, as for a container that is created again.
        for _ in 0..2 {
            let placements = [
                placement(source.path(), "c/rootfs"),
                placement(&file, "c/mounts/0"),
            ];
            move_into_vmm(vmm.pidfd.as_fd(), &placements).await.unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(vmm.path("c/rootfs/file")).unwrap(),
            "text"
        );
        assert_eq!(std::fs::read_to_string(vmm.path("c/mounts/0")).unwrap(), "text");
        assert_eq!(std::fs::create_dir(vmm.path("x")).is_err(), is_read_only);
    }
}

#[tokio::test]
async fn files_of_the_guest_are_refused_by_path_and_never_opened() {
    if !is_root() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let file = source.path().join("file");
    std::fs::write(&file, "").unwrap();
    let vmm = StandIn::start(false, || {
        let mode = NixMode::from_bits_truncate(0o600);
        std::fs::create_dir_all("c/mounts")?;
        std::fs::create_dir_all("elsewhere/mounts")?;
        nix::unistd::mkfifo("c/mounts/0", mode)?;
        std::os::unix::fs::symlink("../../elsewhere", "c/mounts/1")?;
        std::fs::write("c/mounts/2", "not empty")?;
        std::fs::create_dir("c/mounts/3")?;
        nix::unistd::mkfifo("fifo", mode)?;
        std::os::unix::fs::symlink("elsewhere", "link")
    });
    let begun = Instant::now();
    for (source, target, named) in [
        (
            file.as_path(),
            "c/mounts/0",
            "/c/mounts/0: exists and is not an empty",
        ),
        (&file, "c/mounts/1", "/c/mounts/1: exists and is not an empty"),
        (&file, "c/mounts/2", "/c/mounts/2: exists and is not an empty"),
        (&file, "c/mounts/3", "/c/mounts/3: exists and is not an empty"),
        (
            source.path(),
            "c/mounts/0",
            "/c/mounts/0: exists and is not a directory",
        ),
        (
            source.path(),
            "c/mounts/1",
            "/c/mounts/1: exists and is not a directory",
        ),
        (&file, "fifo/mounts/0", "/fifo: exists and is not a directory"),
        (&file, "link/mounts/0", "/link: exists and is not a directory"),
        (&file, "../x", "not a plain relative path"),
    ] {
        let moved = move_into_vmm(vmm.pidfd.as_fd(), &[placement(source, target)]).await;
        let error = moved.unwrap_err().to_string();
        assert!(error.contains(named), "{target}: {error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let elsewhere = std::fs::read_dir(vmm.path("elsewhere/mounts")).unwrap();
    assert_eq!(elsewhere.count(), 0);
}

#[tokio::test]
async fn nothing_is_moved_into_the_hosts_mount_namespace() {
    if !is_root() {
        return;
    }
    let target = format!("nacre-test-{}", std::process::id());
    let placement = Placement {
        target: target.clone().into(),
        is_directory: true,
        mounts: Vec::new(),
    };
    let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
    let error = move_into_vmm(own.as_fd(), &[placement]).await.unwrap_err();
    assert!(error.to_string().contains("mount namespace"), "{error}");
    assert!(!Path::new("/").join(target).exists());
}
