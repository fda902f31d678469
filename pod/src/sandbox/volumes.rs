//! Volumes of a container that are not simply mounts of its own: copies in the guest ([`crate::mirror`]), and
//! directories that it shares with other containers of the pod ([`crate::shared_mounts`]). Called by the create and
//! delete flows.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nacre_protocol::guest::{volume_directory, volume_mount_point};
use tokio::sync::watch;

use super::progress::{Progress, until_ended};
use super::{Sandbox, delete, failed};
use crate::bundle::Plan;
use crate::error::Error;
use crate::log;
use crate::mirror::Mirrors;
use crate::shared_mounts::Part;
use crate::vm::Vm;

impl Sandbox {
    /// Replaces the directories that container `id` has by the pod's shared mounts of them.
    pub(super) fn share_mounts(&mut self, id: &str, plan: &mut Plan) -> Vec<Part> {
        if plan.is_pause {
            return Vec::new();
        }
        let mut parts = Vec::new();
        for mount in plan.mounts.clone() {
            if let Some((number, part)) = self.shared_mounts.take(id, &mount) {
                plan.use_volume(mount.index, number, matches!(part, Part::Make(_)));
                parts.push(part);
            }
        }
        parts
    }

    /// The pod's mirrors, if the container may have one.
    pub(super) fn mirrors_for(&mut self, plan: &Plan) -> Option<Mirrors> {
        if !plan.mounts.iter().any(|mount| mount.may_be_mirrored) {
            return None;
        }
        let mut progress = self.progress.subscribe();
        let ended = async move { until_ended(&mut progress).await };
        Some(self.mirrors.get_or_insert_with(|| Mirrors::start(ended)).clone())
    }

    /// Removes the shared mounts that only container `id` used, which could not be created.
    pub(super) fn remove_unused_volumes(&mut self, id: &str) {
        let unused = self.shared_mounts.release(id);
        let Some(vmm) = self.vm.as_ref().map(Vm::shared_pidfd) else {
            return;
        };
        if !unused.is_empty() {
            let progress = self.progress.subscribe();
            tokio::spawn(async move { remove(&vmm, &unused, &progress).await });
        }
    }
}

/// Takes the volumes that change out of the container's host mounts: it sees a copy in the guest. What can't
/// have a copy stays.
pub(super) async fn choose_mirrors(mirrors: &Mirrors, id: &str, plan: &mut Plan) {
    let volumes = plan.mounts.iter().filter(|mount| mount.may_be_mirrored);
    let volumes: Vec<_> = volumes.map(|mount| (mount.index, mount.source.clone())).collect();
    for (index, source) in volumes {
        match mirrors.take(id, source.clone()).await {
            Ok(number) => plan.use_mirror(index, number),
            Err(reason) => log::warn(format_args!(
                "{}: {} stays on virtio-fs, without inotify: {reason}",
                id,
                source.display()
            )),
        }
    }
}

/// Reports that the shared mounts are made which this container makes, and waits for the others.
pub(super) async fn complete_shared(parts: Vec<Part>) -> Result<(), Error> {
    let mut others = Vec::new();
    for part in parts {
        match part {
            Part::Make(made) => {
                made.send_replace(true);
            }
            Part::Await(made) => others.push(made),
        }
    }
    for mut made in others {
        let reason = "the container that mounts a shared volume first could not be created";
        let known = made.wait_for(|made| *made).await;
        known.map_err(|_| failed("mount volumes", reason, None))?;
    }
    Ok(())
}

/// Removes mounts that containers have shared, as [`delete::remove_files`].
pub(super) async fn remove(vmm: &OwnedFd, numbers: &[u32], progress: &watch::Receiver<Progress>) {
    for number in numbers {
        let (directory, point) = (
            volume_directory(*number),
            PathBuf::from(volume_mount_point(*number)),
        );
        delete::remove_files(vmm, &directory, &[point], progress).await;
    }
}
