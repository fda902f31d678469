//! A container's files as they will be once its mounts exist, for looking up names before that. Only reads; used by
//! [`super`].

use std::cell::OnceCell;
use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2, readlinkat};
use rustix::io::Errno;

/// As many links as runc follows in a path.
const MAX_LINKS: u32 = 255;
/// The mode of a directory that is made for a mount.
const MADE: u32 = 0o755;

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// This file or directory of the guest, the source of a bind mount or the root.
    Tree(PathBuf),
    /// Nothing: a new tmpfs.
    Empty,
    /// A copy of what is there without it, in a new tmpfs.
    Copy,
    /// Files of the kernel, in which no link is followed.
    Kernel,
}

/// What a name is.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Missing,
    Directory {
        /// Its permissions.
        mode: u32,
    },
    Link(PathBuf),
    Other,
}

struct Mounted {
    at: PathBuf,
    content: Content,
    /// The directory of a [`Content::Tree`], opened when a name in it is looked up first: its own path costs requests
    /// of virtio-fs each time.
    tree: OnceCell<OwnedFd>,
}

impl Mounted {
    fn new(at: &Path, content: Content) -> Self {
        Self {
            at: at.to_owned(),
            content,
            tree: OnceCell::new(),
        }
    }
}

/// The mounts so far, and the directories that were made for them.
pub struct View {
    /// A later one hides an earlier one. The first is the root.
    mounts: Vec<Mounted>,
    made: BTreeSet<PathBuf>,
}

impl View {
    /// Only the root file system, which is `root` in the guest.
    pub fn new(root: PathBuf) -> Self {
        Self {
            mounts: vec![Mounted::new(Path::new("/"), Content::Tree(root))],
            made: BTreeSet::new(),
        }
    }

    /// Adds a mount at `path`, which is made if it is missing.
    pub fn mount(&mut self, path: &Path, content: Content) {
        self.made.extend(path.ancestors().map(Path::to_owned));
        self.mounts.push(Mounted::new(path, content));
    }

    /// The mount that `path`, which has no links, is in: what it shows, and the path in it.
    pub fn mount_of<'a>(&self, path: &'a Path) -> (&Content, &'a Path) {
        self.mounts_of(path)
            .next()
            .map_or((&Content::Empty, path), |(mounted, rest)| {
                (&mounted.content, rest)
            })
    }

    /// The mounts that have `path`, from the one that shows it down to the root, each with the path in it.
    fn mounts_of<'v, 'p>(&'v self, path: &'p Path) -> impl Iterator<Item = (&'v Mounted, &'p Path)> {
        let mounts = self.mounts.iter().rev();
        mounts.filter_map(|mounted| Some((mounted, path.strip_prefix(&mounted.at).ok()?)))
    }

    /// `path` without links, as an absolute path in the container. What is missing is taken as it is.
    ///
    /// # Errors
    /// ELOOP, or what reading a link returns.
    pub fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        self.follow(path, |_| Ok(()))
    }

    /// As [`Self::resolve`], for a path that is made as mkdir(1) makes it, which does not follow a link to nowhere.
    ///
    /// # Errors
    /// As [`Self::resolve`], and EEXIST for such a link.
    pub fn resolve_to_make(&self, path: &Path) -> io::Result<PathBuf> {
        self.follow(
            path,
            |of_link| {
                if of_link { Err(Errno::EXIST.into()) } else { Ok(()) }
            },
        )
    }

    /// Calls `on_missing` for each name that is missing, with whether a link named it.
    fn follow(&self, path: &Path, on_missing: impl Fn(bool) -> io::Result<()>) -> io::Result<PathBuf> {
        let mut rest: VecDeque<OsString> = components(path).collect();
        let mut resolved = PathBuf::from("/");
        let mut links = 0;
        // The names in `rest` that are not of a link.
        let mut of_path = rest.len();
        while let Some(name) = rest.pop_front() {
            let of_link = rest.len() >= of_path;
            of_path = of_path.min(rest.len());
            if name == ".." {
                resolved.pop();
                continue;
            }
            let next = resolved.join(&name);
            let found = self.look(&next)?;
            if found == Found::Missing {
                on_missing(of_link)?;
            }
            let Found::Link(target) = found else {
                resolved = next;
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP.into());
            }
            if target.is_absolute() {
                resolved = PathBuf::from("/");
            }
            let names: Vec<OsString> = components(&target).collect();
            names.into_iter().rev().for_each(|name| rest.push_front(name));
        }
        Ok(resolved)
    }

    /// What is at `path`, whose directory has no links.
    ///
    /// # Errors
    /// What opening it or reading a link returns.
    pub fn look(&self, path: &Path) -> io::Result<Found> {
        let mut mounts = self.mounts_of(path);
        // What is found in a copy is found where it was copied from.
        let found = match mounts.find(|(mounted, _)| mounted.content != Content::Copy) {
            Some((
                Mounted {
                    content: Content::Tree(root),
                    tree,
                    ..
                },
                rest,
            )) => in_tree(root, tree, rest)?,
            Some((
                Mounted {
                    content: Content::Empty,
                    ..
                },
                rest,
            )) if rest.as_os_str().is_empty() => Found::Directory { mode: MADE },
            Some((
                Mounted {
                    content: Content::Kernel,
                    ..
                },
                _,
            )) => Found::Other,
            Some((
                Mounted {
                    content: Content::Empty | Content::Copy,
                    ..
                },
                _,
            ))
            | None => Found::Missing,
        };
        if found == Found::Missing && self.made.contains(path) {
            return Ok(Found::Directory { mode: MADE });
        }
        Ok(found)
    }
}

/// The names of `path`, with "..".
fn components(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// What is at `path` in the directory `root`, which `tree` has when it was opened, or the file `root` itself. Nothing
/// that another container of the pod changes meanwhile leads out of the tree.
fn in_tree(root: &Path, tree: &OnceCell<OwnedFd>, path: &Path) -> io::Result<Found> {
    let found = open_in_tree(root, tree, path);
    let file = match found {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Found::Missing),
        file => file?,
    };
    let stat = fstat(&file)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Symlink {
        let target = readlinkat(&file, "", Vec::new())?.into_bytes();
        return Ok(Found::Link(OsString::from_vec(target).into()));
    }
    if kind == FileType::Directory {
        let mode = stat.st_mode & 0o7777;
        return Ok(Found::Directory { mode });
    }
    Ok(Found::Other)
}

fn open_in_tree(root: &Path, tree: &OnceCell<OwnedFd>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    if path.as_os_str().is_empty() {
        return rustix::fs::open(root, flags, Mode::empty());
    }
    let tree = match tree.get() {
        Some(tree) => tree,
        None => {
            let opened = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
            tree.get_or_init(|| opened)
        }
    };
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(tree, path, flags | OFlags::NOFOLLOW, Mode::empty(), inside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    /// A root, a volume at /vol and a tmpfs at /tmp. The root is the first directory, the volume the second.
    fn view() -> (tempfile::TempDir, View) {
        let directory = tempfile::tempdir().unwrap();
        let (root, volume) = (directory.path().join("root"), directory.path().join("volume"));
        for path in [root.join("etc"), root.join("tmp/hidden"), volume.join("sub")] {
            fs::create_dir_all(path).unwrap();
        }
        fs::set_permissions(root.join("etc"), fs::Permissions::from_mode(0o2711)).unwrap();
        let mut view = View::new(root);
        view.mount(Path::new("/vol"), Content::Tree(volume));
        view.mount(Path::new("/tmp"), Content::Empty);
        view.mount(Path::new("/proc"), Content::Kernel);
        (directory, view)
    }

    #[test]
    fn links_are_followed_inside_of_the_container_and_through_mounts() {
        let (directory, view) = view();
        let link = |target: &str, path: &str| symlink(target, directory.path().join(path)).unwrap();
        link("/no/where", "root/dangling");
        link("../../../etc", "root/etc/up");
        link("/vol/sub/new", "root/into");
        link("/etc/x", "volume/back");
        link("b", "root/a");
        link("a", "root/b");
        for (path, want) in [
            ("/dangling", "/no/where"),
            ("/dangling/file", "/no/where/file"),
            ("/etc/up/up/f", "/etc/f"),
            ("/into", "/vol/sub/new"),
            ("/vol/back", "/etc/x"),
            ("/missing/../also", "/also"),
            ("/../..", "/"),
            ("/tmp/hidden/x", "/tmp/hidden/x"),
            ("/proc/self/cwd", "/proc/self/cwd"),
        ] {
            assert_eq!(view.resolve(Path::new(path)).unwrap(), Path::new(want), "{path}");
        }
        let error = view.resolve(Path::new("/a/x")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        for (path, want) in [
            ("/dangling", Err(Some(libc::EEXIST))),
            ("/into/x", Err(Some(libc::EEXIST))),
            ("/etc/up/etc/x", Ok("/etc/etc/x".into())),
            ("/vol/sub/x/y", Ok("/vol/sub/x/y".into())),
        ] {
            let made = view.resolve_to_make(Path::new(path));
            assert_eq!(made.map_err(|error| error.raw_os_error()), want, "{path}");
        }
    }

    #[test]
    fn a_mount_hides_what_is_below_and_shows_what_is_made_for_others() {
        let (_directory, mut view) = view();
        let found = |view: &View, path: &str| view.look(Path::new(path)).unwrap();
        assert_eq!(found(&view, "/etc"), Found::Directory { mode: 0o2711 });
        assert_eq!(found(&view, "/tmp/hidden"), Found::Missing);
        assert_eq!(found(&view, "/vol"), Found::Directory { mode: 0o755 });
        view.mount(Path::new("/tmp/a/b"), Content::Empty);
        assert_eq!(found(&view, "/tmp/a"), Found::Directory { mode: MADE });
        assert_eq!(
            view.mount_of(Path::new("/tmp/a/c")),
            (&Content::Empty, Path::new("a/c"))
        );
        assert_eq!(view.mount_of(Path::new("/tmpx")).1, Path::new("tmpx"));
    }

    #[test]
    fn a_file_can_be_mounted_and_has_nothing_below() {
        let (directory, mut view) = view();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        view.mount(Path::new("/etc/file"), Content::Tree(file));
        assert_eq!(view.look(Path::new("/etc/file")).unwrap(), Found::Other);
        assert_eq!(view.look(Path::new("/etc/file/x")).unwrap(), Found::Missing);
    }
}
