//! The task that owns a pod's mirrors: it knows which containers use each, waits for changes on the host, and
//! carries them out in the guest. One thing after the other; what changes meanwhile waits in the kernel's queue.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nacre_protocol::guest::MAX_MIRROR_BYTES;
use tokio::sync::{mpsc, oneshot};

use super::scan::{self, scan};
use super::send::{self, Sender};
use super::tree::Tree;
use super::watch::{Changed, Watch};
use crate::guest::{CallError, Guest};
use crate::log;
use crate::mount::Extent;
use crate::rootfs;

/// Most mirrors of a pod.
const MAX_MIRRORS: usize = 256;
/// How often a volume that changes while it is copied is looked at again. After that, the copy waits for the next
/// change.
const MAX_LOOKS: u32 = 16;

/// What the task is asked for.
pub enum Command {
    /// Container `container` is to see the directory `source` by a mirror: the answer is its number, or why the
    /// container can't have one.
    Use {
        container: String,
        source: PathBuf,
        answer: oneshot::Sender<Result<u32, String>>,
    },
    /// The guest is ready, and `container` is about to be created: the answer comes when its mirrors are complete.
    Fill {
        container: String,
        guest: Guest,
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// The container is gone.
    Release { container: String },
}

/// A volume and its copy.
struct Mirror {
    source: PathBuf,
    /// A detached mount, so that the host may unmount its own.
    root: OwnedFd,
    /// The root's device and inode, by which another container's mount is the same volume.
    identity: (u64, u64),
    /// What the copy contains.
    known: Tree,
    /// Bytes of the volume's files when it was last looked at.
    bytes: u64,
    watches: BTreeSet<i32>,
    users: BTreeSet<String>,
    is_filled: bool,
    /// Why the copy is not as the volume.
    failure: Option<String>,
}

/// The task's state.
#[derive(Default)]
pub struct Task {
    /// None while there is no mirror.
    watch: Option<Watch>,
    mirrors: BTreeMap<u32, Mirror>,
    /// Once a container was created.
    guest: Option<Guest>,
    last_number: u32,
}

impl Task {
    /// Serves `commands` until their senders are dropped.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.handle(command).await,
                    None => return,
                },
                changed = changed(self.watch.as_ref()) => match changed {
                    Ok(changed) => self.follow(&changed).await,
                    Err(error) => {
                        log::error(format_args!("watching volumes: {error}; containers keep their old files"));
                        self.watch = None;
                    }
                },
            }
        }
    }

    async fn handle(&mut self, command: Command) {
        // An answer that nobody waits for: the creation was cancelled, and Release follows.
        match command {
            Command::Use {
                container,
                source,
                answer,
            } => {
                let _ = answer.send(self.take(container, &source).map_err(|error| error.to_string()));
                self.stop_if_unused();
            }
            Command::Fill {
                container,
                guest,
                answer,
            } => {
                self.guest = Some(guest);
                let _ = answer.send(self.fill(&container).await);
            }
            Command::Release { container } => self.release(&container).await,
        }
    }

    /// Adds `container` to the users of the mirror of `source`.
    fn take(&mut self, container: String, source: &Path) -> io::Result<u32> {
        let extent = Extent {
            recursive: false,
            read_only: true,
        };
        let root = rootfs::clone_directory(source, extent).map_err(io::Error::other)?;
        let stat = rustix::fs::fstat(&root)?;
        let identity = (stat.st_dev, stat.st_ino);
        let mut mirrors = self.mirrors.iter_mut();
        if let Some((number, mirror)) = mirrors.find(|(_, mirror)| mirror.identity == identity) {
            mirror.users.insert(container);
            return Ok(*number);
        }
        if self.mirrors.len() >= MAX_MIRRORS {
            return Err(io::Error::other(format!(
                "the pod has {MAX_MIRRORS} copies of volumes"
            )));
        }
        let mut mirror = Mirror {
            source: source.to_owned(),
            root,
            identity,
            known: Tree::empty(),
            bytes: 0,
            watches: BTreeSet::new(),
            users: [container].into(),
            is_filled: false,
            failure: None,
        };
        let watch = match self.watch.take() {
            Some(watch) => watch,
            None => Watch::new().map_err(|error| {
                io::Error::new(error.kind(), format!("{error} (fs.inotify.max_user_instances)"))
            })?,
        };
        let watch = self.watch.insert(watch);
        let others: u64 = self.mirrors.values().map(|mirror| mirror.bytes).sum();
        let looked_at = mirror.first_look(watch, others);
        if looked_at.is_err() {
            mirror
                .watches
                .iter()
                .for_each(|descriptor| watch.remove(*descriptor));
        }
        looked_at.map_err(io::Error::other)?;
        self.last_number = self.last_number.wrapping_add(1);
        self.mirrors.insert(self.last_number, mirror);
        Ok(self.last_number)
    }

    /// Completes the mirrors of `container`.
    async fn fill(&mut self, container: &str) -> Result<(), String> {
        let (Some(watch), Some(guest)) = (&self.watch, &self.guest) else {
            return Ok(());
        };
        for (number, mirror) in &mut self.mirrors {
            if mirror.is_filled || !mirror.users.contains(container) {
                continue;
            }
            let updated = mirror.update(*number, watch, guest).await;
            updated.map_err(|error| format!("copying {}: {error}", mirror.source.display()))?;
            mirror.is_filled = true;
        }
        Ok(())
    }

    /// Removes `container` from the users of its mirrors, and then the mirrors that nobody uses.
    async fn release(&mut self, container: &str) {
        let mut unused = Vec::new();
        for (number, mirror) in &mut self.mirrors {
            if mirror.users.remove(container) && mirror.users.is_empty() {
                unused.push(*number);
            }
        }
        for number in unused {
            let Some(mirror) = self.mirrors.remove(&number) else {
                continue;
            };
            if let Some(watch) = &self.watch {
                mirror
                    .watches
                    .iter()
                    .for_each(|descriptor| watch.remove(*descriptor));
            }
            let Some(guest) = &self.guest else { continue };
            match guest.remove_mirror(number).await {
                Ok(()) | Err(CallError::Lost(_)) => {}
                Err(error) => log::error(format_args!(
                    "removing the copy of {}: {error:?}",
                    mirror.source.display()
                )),
            }
        }
        self.stop_if_unused();
    }

    /// Gives the inotify instance back to the host.
    fn stop_if_unused(&mut self) {
        if self.mirrors.is_empty() {
            self.watch = None;
        }
    }

    async fn follow(&mut self, changed: &Changed) {
        let (Some(watch), Some(guest)) = (&self.watch, &self.guest) else {
            return;
        };
        for (number, mirror) in &mut self.mirrors {
            let has_changed = match changed {
                Changed::Any => true,
                Changed::These(these) => !mirror.watches.is_disjoint(these),
            };
            if !mirror.is_filled || !has_changed {
                continue;
            }
            let updated = mirror.update(*number, watch, guest).await;
            mirror.report(updated);
        }
    }
}

/// Waits for changes; for ever without a watch.
async fn changed(watch: Option<&Watch>) -> io::Result<Changed> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

impl Mirror {
    /// Decides whether the volume can have a copy, besides `others` bytes of other copies.
    fn first_look(&mut self, watch: &Watch, others: u64) -> Result<(), String> {
        let mut looked = self.look(watch);
        for _ in 1..MAX_LOOKS {
            if !looked.as_ref().is_err_and(scan::Error::is_passing) {
                break;
            }
            looked = self.look(watch);
        }
        let tree = looked.map_err(|error| error.to_string())?;
        if tree.data().is_none() {
            return Err("it has no symbolic link ..data".into());
        }
        if self.bytes.saturating_add(others) > MAX_MIRROR_BYTES {
            return Err(format!(
                "the pod's copies of volumes are more than {MAX_MIRROR_BYTES} bytes"
            ));
        }
        Ok(())
    }

    /// Reads the volume's directory and watches all of it.
    fn look(&mut self, watch: &Watch) -> Result<Tree, scan::Error> {
        let mut watches = BTreeSet::new();
        let scanned = scan(&self.root, |directory| {
            watches.insert(watch.add(directory)?);
            Ok(())
        });
        match &scanned {
            Ok(tree) => {
                self.bytes = tree.bytes();
                // Those that were moved out of the volume.
                self.watches
                    .difference(&watches)
                    .for_each(|old| watch.remove(*old));
                self.watches = watches;
            }
            Err(_) => self.watches.append(&mut watches),
        }
        scanned
    }

    /// Makes the copy as the volume is.
    async fn update(&mut self, number: u32, watch: &Watch, guest: &Guest) -> Result<(), send::Error> {
        let mut looks = 0;
        loop {
            looks += 1;
            match self.copy(number, watch, guest).await {
                Err(send::Error::Host(error)) if error.is_passing() && looks < MAX_LOOKS => {}
                updated => return updated,
            }
        }
    }

    async fn copy(&mut self, number: u32, watch: &Watch, guest: &Guest) -> Result<(), send::Error> {
        let wanted = self.look(watch)?;
        let changes = self.known.changes(&wanted);
        let sender = Sender::new(guest, number, self.root.as_fd(), &mut self.known);
        sender.send(changes).await
    }

    /// Logs a failure, unless it is the same as before.
    fn report(&mut self, updated: Result<(), send::Error>) {
        let source = self.source.display();
        let failure = match updated {
            Ok(()) => None,
            // The VM's end is reported elsewhere.
            Err(send::Error::Call(CallError::Lost(_))) => return,
            Err(error) => Some(error.to_string()),
        };
        if failure == self.failure {
            return;
        }
        match &failure {
            Some(reason) => log::error(format_args!(
                "volume {source}: containers keep its old files: {reason}"
            )),
            None => log::info(format_args!("volume {source}: containers have its new files")),
        }
        self.failure = failure;
    }
}
