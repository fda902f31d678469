//! Directories of the host that several containers of a pod mount: each has one mount in the shared tree, so that it is
//! one file system in the guest. Only then are its files the same for all containers: a socket that one of them
//! serves, a lock that one of them holds, a page that one of them has mapped. Used by the sandbox's create and delete
//! flows. Pure, besides the look at what a path is.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;

use crate::mount::{Extent, HostMount, IdMap};

/// A directory, and how it is mounted: mounts of the same key are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    device: u64,
    inode: u64,
    extent: Extent,
    id_map: Option<(IdMap, bool)>,
}

/// What a container has to do with a shared mount.
#[derive(Debug)]
pub enum Part {
    /// Make it, and report that.
    Make(watch::Sender<bool>),
    /// Wait until another container's creation has made it. The creation has failed if the sender is dropped.
    Await(watch::Receiver<bool>),
}

/// The shared mounts of a pod, by their number.
#[derive(Debug, Default)]
pub struct SharedMounts {
    all: BTreeMap<u32, Shared>,
    last_number: u32,
}

#[derive(Debug)]
struct Shared {
    key: Key,
    users: BTreeSet<String>,
    made: watch::Receiver<bool>,
}

impl SharedMounts {
    /// The shared mount by which `container` is to see `mount`, and its part in it. None if it can't be shared.
    pub fn take(&mut self, container: &str, mount: &HostMount) -> Option<(u32, Part)> {
        if mount.may_be_mirrored || mount.is_of_kernel {
            return None;
        }
        // Whatever is wrong with the path is reported when it is mounted.
        let stat = rustix::fs::stat(&mount.source).ok()?;
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
            return None;
        }
        let key = Key {
            device: stat.st_dev,
            inode: stat.st_ino,
            extent: mount.extent,
            id_map: mount.id_map.clone(),
        };
        let mut all = self.all.iter_mut();
        if let Some((number, shared)) = all.find(|(_, shared)| shared.key == key && shared.is_usable()) {
            shared.users.insert(container.to_owned());
            return Some((*number, Part::Await(shared.made.clone())));
        }
        let (maker, made) = watch::channel(false);
        let users = [container.to_owned()].into();
        self.last_number = self.last_number.wrapping_add(1);
        self.all.insert(self.last_number, Shared { key, users, made });
        Some((self.last_number, Part::Make(maker)))
    }

    /// `container` is gone; returns the numbers of the mounts that no container uses any more.
    pub fn release(&mut self, container: &str) -> Vec<u32> {
        let mut unused = Vec::new();
        self.all.retain(|number, shared| {
            let is_unused = shared.users.remove(container) && shared.users.is_empty();
            if is_unused {
                unused.push(*number);
            }
            !is_unused
        });
        unused
    }
}

impl Shared {
    /// Whether it is made, or still may be.
    fn is_usable(&self) -> bool {
        *self.made.borrow() || self.made.has_changed().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(source: &std::path::Path, read_only: bool) -> HostMount {
        HostMount {
            index: 0,
            source: source.to_owned(),
            extent: Extent {
                recursive: true,
                read_only,
            },
            id_map: None,
            is_of_kernel: false,
            may_be_mirrored: false,
            volume: None,
        }
    }

    fn number(taken: Option<(u32, Part)>) -> u32 {
        taken.unwrap().0
    }

    #[test]
    fn a_directory_is_shared_until_its_last_user_is_gone() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut shared = SharedMounts::default();
        let Some((first, Part::Make(maker))) = shared.take("a", &mount(one.path(), false)) else {
            panic!("not made by its first user");
        };
        let link = two.path().join("link");
        std::os::unix::fs::symlink(one.path(), &link).unwrap();
        for (container, path) in [("b", one.path()), ("a", one.path()), ("c", &link)] {
            let Some((again, Part::Await(made))) = shared.take(container, &mount(path, false)) else {
                panic!("not shared with {container}");
            };
            assert_eq!((again, *made.borrow()), (first, false));
        }
        maker.send_replace(true);
        drop(maker);
        assert_eq!(number(shared.take("d", &mount(one.path(), false))), first);
        for container in ["a", "b", "c", "a", "none"] {
            assert!(shared.release(container).is_empty());
        }
        assert_eq!(shared.release("d"), [first]);
        assert_ne!(number(shared.take("e", &mount(one.path(), false))), first);
    }

    #[test]
    fn other_directories_and_other_options_are_other_mounts() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut shared = SharedMounts::default();
        let mut mapped = mount(one.path(), false);
        mapped.id_map = Some((IdMap::default(), false));
        let mounts = [
            mount(one.path(), false),
            mount(one.path(), true),
            mount(two.path(), false),
            mapped,
        ];
        let numbers: BTreeSet<u32> = mounts
            .iter()
            .map(|mount| number(shared.take("a", mount)))
            .collect();
        assert_eq!(numbers.len(), 4);
        assert_eq!(shared.release("a").len(), 4);
        let file = one.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(shared.take("a", &mount(&file, false)).is_none());
        assert!(
            shared
                .take("a", &mount(&one.path().join("none"), false))
                .is_none()
        );
        let mut mirrored = mount(one.path(), true);
        mirrored.may_be_mirrored = true;
        assert!(shared.take("a", &mirrored).is_none());
    }

    #[test]
    fn a_mount_that_could_not_be_made_is_not_shared() {
        let one = tempfile::tempdir().unwrap();
        let mut shared = SharedMounts::default();
        let Some((first, Part::Make(maker))) = shared.take("a", &mount(one.path(), false)) else {
            panic!("not made by its first user");
        };
        drop(maker);
        let Some((second, Part::Make(_))) = shared.take("b", &mount(one.path(), false)) else {
            panic!("shared with a container that has failed");
        };
        assert_ne!(first, second);
        assert_eq!(
            (shared.release("a"), shared.release("b")),
            (vec![first], vec![second])
        );
    }
}
