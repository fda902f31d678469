//! Mounts moved into the namespace of a child that stands in for the VMM. All tests need root.

use super::super::stand_in::{StandIn, is_root, placement};
use super::*;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode as NixMode;
use rustix::process::{PidfdFlags, pidfd_open};

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
