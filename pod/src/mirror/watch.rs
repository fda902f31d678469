//! The pod's inotify instance: one for all of its mirrors, because the host has few (fs.inotify.max_user_instances,
//! 128 for root by default). Knows directories only by their watch descriptors.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Bytes of events that are read at once: more than one with the longest name.
const BUFFER: usize = 16 * 1024;
/// Most reads before the events are handled: whoever changes the files all the time must not hold the shim.
const MAX_READS: usize = 64;

/// An inotify instance.
#[derive(Debug)]
pub struct Watch(AsyncFd<OwnedFd>);

/// Which directories have changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Changed {
    /// Those with these watch descriptors.
    These(BTreeSet<i32>),
    /// Any: the kernel's queue of events was full.
    Any,
}

impl Watch {
    /// # Errors
    /// As inotify_init1(2): EMFILE if the host has no more instances.
    pub fn new() -> io::Result<Self> {
        let instance = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self(sys::watch(instance)?))
    }

    /// Watches `directory`; returns its watch descriptor, which is the same if it is watched already.
    ///
    /// # Errors
    /// As inotify_add_watch(2): ENOSPC if the host has no more watches.
    pub fn add(&self, directory: BorrowedFd<'_>) -> io::Result<i32> {
        // A write is reported when the file is closed. The path is this process's descriptor, so that no name is
        // resolved.
        let flags = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        Ok(inotify::add_watch(self.0.get_ref(), path, flags)?)
    }

    /// Ends the watch `descriptor`.
    pub fn remove(&self, descriptor: i32) {
        // EINVAL: its directory was removed, and the watch with it.
        let _ = inotify::remove_watch(self.0.get_ref(), descriptor);
    }

    /// Waits for changes.
    ///
    /// # Errors
    /// If the instance fails; it is of no more use then.
    pub async fn changed(&self) -> io::Result<Changed> {
        loop {
            let mut ready = self.0.readable().await?;
            let (changed, is_empty) = self.read()?;
            if is_empty {
                ready.clear_ready();
            }
            if changed != Changed::These(BTreeSet::new()) {
                return Ok(changed);
            }
        }
    }

    /// The events until now, and whether those are all.
    fn read(&self) -> io::Result<(Changed, bool)> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = inotify::Reader::new(self.0.get_ref(), &mut buffer);
        let (mut these, mut is_full, mut reads) = (BTreeSet::new(), false, 0);
        let is_empty = loop {
            if reader.is_buffer_empty() {
                reads += 1;
                if reads > MAX_READS {
                    break false;
                }
            }
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => is_full = true,
                Ok(event) => {
                    these.insert(event.wd());
                }
                Err(Errno::AGAIN) => break true,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let changed = if is_full {
            Changed::Any
        } else {
            Changed::These(these)
        };
        Ok((changed, is_empty))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd as _;

    use super::*;

    #[tokio::test]
    async fn changes_are_reported_by_directory() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = |directory: &tempfile::TempDir| File::open(directory.path()).unwrap();
        let watch = Watch::new().unwrap();
        let one = watch.add(open(&first).as_fd()).unwrap();
        let two = watch.add(open(&second).as_fd()).unwrap();
        assert_eq!(watch.add(open(&first).as_fd()).unwrap(), one);
        fs::write(first.path().join("f"), "x").unwrap();
        assert_eq!(watch.changed().await.unwrap(), Changed::These([one].into()));
        fs::rename(first.path().join("f"), second.path().join("f")).unwrap();
        assert_eq!(watch.changed().await.unwrap(), Changed::These([one, two].into()));
        watch.remove(one);
        fs::write(first.path().join("g"), "x").unwrap();
        fs::write(second.path().join("g"), "x").unwrap();
        // With the end of the first watch itself.
        assert_eq!(watch.changed().await.unwrap(), Changed::These([one, two].into()));
        fs::write(first.path().join("g"), "y").unwrap();
        fs::write(second.path().join("g"), "y").unwrap();
        assert_eq!(watch.changed().await.unwrap(), Changed::These([two].into()));
    }

    #[tokio::test]
    async fn too_many_changes_are_a_change_of_any() {
        let directory = tempfile::tempdir().unwrap();
        let watch = Watch::new().unwrap();
        watch.add(File::open(directory.path()).unwrap().as_fd()).unwrap();
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let limit: u32 = limit.trim().parse().unwrap();
        let (one, two) = (directory.path().join("1"), directory.path().join("2"));
        fs::write(&one, "").unwrap();
        for _ in 0..limit / 4 + 1 {
            fs::rename(&one, &two).unwrap();
            fs::rename(&two, &one).unwrap();
        }
        while watch.changed().await.unwrap() != Changed::Any {}
    }
}
