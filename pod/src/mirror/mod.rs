//! Mirrors: copies in the guest of volumes that change while containers read them: ConfigMaps, Secrets, and
//! projected and downward API volumes. Programs wait for such a change by inotify(7), which virtio-fs does not have.
//!
//! ```text
//! kubelet ─▶ volume ─inotify─▶ task ─scan─▶ tree ─changes─▶ send ─ChangeMirror─▶ agent ─▶ tmpfs ─inotify─▶ program
//! ```
//! The sandbox's create flow asks for a mirror of each mount that may have one, its delete flow releases them. A
//! volume that can't have a mirror is mounted by virtio-fs as any other. Never writes to a volume, and never
//! follows a symbolic link in it.

mod scan;
mod send;
mod task;
mod tree;
mod watch;

use std::path::{Path, PathBuf};

use tokio::sync::{mpsc, oneshot};

use self::task::{Command, Task};
use crate::guest::Guest;

/// Commands that may wait; a sender of one more waits itself.
const CAPACITY: usize = 16;
/// kubelet's names of the volume plugins whose volumes change by a link `..data`.
const PLUGINS: [&str; 4] = [
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~downward-api",
];
/// In a pod's directory of kubelet's: its volumes.
const VOLUMES: &str = "volumes";

/// Whether `source` is by its path the directory of a volume that may have a mirror, such as
/// `/var/lib/kubelet/pods/UID/volumes/kubernetes.io~configmap/NAME`.
pub fn is_volume(source: &Path) -> bool {
    let mut above = source.ancestors().skip(1).map(Path::file_name);
    let plugin = above.next().flatten();
    let volumes = above.next().flatten();
    plugin.is_some_and(|plugin| PLUGINS.iter().any(|known| plugin == *known))
        && volumes.is_some_and(|name| name == VOLUMES)
}

/// The way to a pod's mirrors.
#[derive(Debug, Clone)]
pub struct Mirrors(mpsc::Sender<Command>);

impl Mirrors {
    /// Starts their task, which ends with `ended` or when no one holds this handle.
    pub fn start(ended: impl Future<Output = ()> + Send + 'static) -> Self {
        let (sender, commands) = mpsc::channel(CAPACITY);
        tokio::spawn(async move {
            tokio::select! {
                () = ended => {}
                () = Task::default().run(commands) => {}
            }
        });
        Self(sender)
    }

    /// The number of the mirror by which `container` is to see `source`.
    ///
    /// # Errors
    /// Why it can't see it by a mirror.
    pub async fn take(&self, container: &str, source: PathBuf) -> Result<u32, String> {
        let container = container.to_owned();
        self.ask(|answer| Command::Use {
            container,
            source,
            answer,
        })
        .await
    }

    /// Waits until the mirrors of `container` are complete in `guest`.
    ///
    /// # Errors
    /// Why one could not be completed.
    pub async fn fill(&self, container: &str, guest: Guest) -> Result<(), String> {
        let container = container.to_owned();
        self.ask(|answer| Command::Fill {
            container,
            guest,
            answer,
        })
        .await
    }

    /// `container` is gone: its mirrors are removed, unless others use them.
    pub async fn release(&self, container: &str) {
        let container = container.to_owned();
        // Fails only if the VM has ended, and the mirrors with it.
        let _ = self.0.send(Command::Release { container }).await;
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Command,
    ) -> Result<T, String> {
        let ended = "the VM has ended";
        let (answer, answered) = oneshot::channel();
        self.0.send(command(answer)).await.map_err(|_| ended)?;
        answered.await.map_err(|_| ended)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_recognised_by_kubelet_s_path() {
        let pods = "/var/lib/kubelet/pods/u";
        for name in ["configmap", "secret", "projected", "downward-api"] {
            let path = format!("{pods}/volumes/kubernetes.io~{name}/config");
            assert!(is_volume(Path::new(&path)), "{path}");
            assert!(is_volume(Path::new(&format!("{path}/"))), "{path}/");
        }
        for other in [
            "volumes/kubernetes.io~empty-dir/cache",
            "volumes/kubernetes.io~configmap",
            "volumes/kubernetes.io~configmap/config/..data",
            "volumes/kubernetes.io~configmap/config/key",
            "volume-subpaths/config/c/0",
            "kubernetes.io~configmap/config",
            "volumes/kubernetes.io~configmap2/config",
        ] {
            assert!(!is_volume(&Path::new(pods).join(other)), "{other}");
        }
        for other in ["", "/", "config", "kubernetes.io~configmap/config"] {
            assert!(!is_volume(Path::new(other)), "{other}");
        }
    }
}
