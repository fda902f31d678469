//! Mounts removed from the namespace of a child that stands in for the VMM. All tests need root.

use super::super::stand_in::{StandIn, is_root, placement};
use super::*;
use std::os::fd::AsFd as _;

fn mounts(vmm: &StandIn) -> usize {
    let file = format!("/proc/{}/mountinfo", vmm.pid.as_raw_nonzero());
    std::fs::read_to_string(file).unwrap().lines().count()
}

fn points(list: &[&str]) -> Vec<PathBuf> {
    list.iter().map(PathBuf::from).collect()
}

#[tokio::test]
async fn nothing_of_a_container_is_left() {
    if !is_root() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let file = source.path().join("file");
    std::fs::write(&file, "text").unwrap();
    for is_read_only in [false, true] {
        let vmm = StandIn::start(is_read_only, || Ok(()));
        let before = mounts(&vmm);
        for _ in 0..2 {
            let mut root = placement(source.path(), "c/rootfs");
            root.mounts.extend(placement(source.path(), "c/rootfs").mounts);
            let placements = [
                root,
                placement(&file, "c/mounts/0"),
                placement(source.path(), "c/mounts/7"),
            ];
            super::super::move_into_vmm(vmm.pidfd.as_fd(), &placements)
                .await
                .unwrap();
            super::super::move_into_vmm(vmm.pidfd.as_fd(), &[placement(&file, "d/mounts/0")])
                .await
                .unwrap();
            assert_eq!(mounts(&vmm), before + 5);
            // The last mount point never existed: the creation failed before it.
            let all = points(&["c/rootfs", "c/mounts/0", "c/mounts/7", "c/mounts/8"]);
            remove_from_vmm(vmm.pidfd.as_fd(), &all).await.unwrap();
            assert!(!vmm.path("c").exists());
            assert_eq!(std::fs::read_to_string(vmm.path("d/mounts/0")).unwrap(), "text");
            remove_from_vmm(vmm.pidfd.as_fd(), &points(&["d/mounts/0"]))
                .await
                .unwrap();
            // Again, when all is gone.
            remove_from_vmm(vmm.pidfd.as_fd(), &all).await.unwrap();
            assert_eq!(mounts(&vmm), before);
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "text");
    }
}

#[tokio::test]
async fn what_a_hostile_vmm_has_put_there_is_reported_and_the_rest_is_removed() {
    if !is_root() {
        return;
    }
    let vmm = StandIn::start(false, || {
        std::fs::create_dir_all("c/mounts/1/full")?;
        std::fs::create_dir_all("c/rootfs")?;
        std::fs::create_dir_all("elsewhere/mounts/0")?;
        std::os::unix::fs::symlink("elsewhere", "link")
    });
    let all = points(&["c/rootfs", "c/mounts/1", "link/mounts/0", "../x"]);
    let error = remove_from_vmm(vmm.pidfd.as_fd(), &all)
        .await
        .unwrap_err()
        .to_string();
    for named in ["/c/mounts/1: ", "/link/mounts/0: ", "not a plain relative path"] {
        assert!(error.contains(named), "{named}: {error}");
    }
    assert!(!vmm.path("c/rootfs").exists() && vmm.path("elsewhere/mounts/0").exists());
}
