//! What a mirrored directory contains, and the changes that make one tree into another. Pure.
//!
//! The order of changes is that of kubelet: new directories and files first, then `..data` at once to the new
//! version, then other symbolic links, then what is no longer there. So whichever change is the last that is
//! carried out, `..data` leads to a complete version.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The symbolic link that kubelet moves from one version of the files to the next.
pub const DATA: &str = "..data";
/// What kubelet appends to the name of a link that it makes to replace another one.
const TEMPORARY: &str = "_tmp";

/// Bytes of a page of memory.
const PAGE: u64 = 4096;

/// Owner and permission bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// 0..=0o7777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A file's content, as far as it can be told without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Modification time, seconds and nanoseconds since the epoch.
    pub modified: (i64, u32),
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File(Version),
    /// A symbolic link, with its target.
    Symlink(OsString),
}

/// A file, directory or symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    pub attributes: Attributes,
}

impl Entry {
    /// The memory that it takes in a tmpfs, bytes: whole pages.
    pub fn bytes(&self) -> u64 {
        /// A shorter target is part of the inode.
        const SHORT: usize = 128;
        let pages = |size: u64| size.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        match &self.kind {
            Kind::File(version) => pages(version.size),
            Kind::Symlink(target) if target.len() >= SHORT => pages(target.len() as u64),
            Kind::Symlink(_) | Kind::Directory => 0,
        }
    }
}

/// A directory and everything below it, by its path relative to the directory, which itself has the empty path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree(BTreeMap<PathBuf, Entry>);

/// One change of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    MakeDirectory(PathBuf, Attributes),
    /// Writes a whole file, in place of a file or link that has its name.
    WriteFile(PathBuf, Attributes, Version),
    /// In place of a file or link that has its name.
    MakeSymlink(PathBuf, OsString, Attributes),
    /// Sets the attributes of a directory, or of a file with its modification time.
    SetAttributes(PathBuf, Entry),
    /// In place of a file or link that has the name.
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    /// Removes a file, a link or an empty directory.
    Remove(PathBuf),
}

impl Tree {
    /// An empty directory whose attributes are not known: the first difference sets them.
    pub fn empty() -> Self {
        let root = Entry {
            kind: Kind::Directory,
            attributes: Attributes {
                mode: u32::MAX,
                uid: 0,
                gid: 0,
            },
        };
        Self([(PathBuf::new(), root)].into())
    }

    /// Adds or replaces an entry.
    pub fn insert(&mut self, path: PathBuf, entry: Entry) {
        self.0.insert(path, entry);
    }

    /// The entry at `path`.
    pub fn get(&self, path: &Path) -> Option<&Entry> {
        self.0.get(path)
    }

    /// Number of entries, with the directory itself.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The memory that all entries take in a tmpfs, bytes.
    pub fn bytes(&self) -> u64 {
        self.0.values().map(Entry::bytes).fold(0, u64::saturating_add)
    }

    /// The target of `..data`; None unless it is a symbolic link.
    pub fn data(&self) -> Option<&Path> {
        match &self.get(Path::new(DATA))?.kind {
            Kind::Symlink(target) => Some(Path::new(target)),
            Kind::Directory | Kind::File(_) => None,
        }
    }

    /// The changes that make this tree into `wanted`, in the order in which they must be carried out.
    pub fn changes(&self, wanted: &Self) -> Vec<Change> {
        let mut plan = Plan {
            now: self.clone(),
            changes: Vec::new(),
        };
        for (path, entry) in &wanted.0 {
            plan.make(path, entry);
        }
        for (path, target, attributes) in self.links_to_make(wanted) {
            plan.link(wanted, path, target, attributes);
        }
        plan.remove_others(wanted);
        plan.changes
    }

    /// The links of `wanted` that differ: `..data` first, then those that replace something, then new ones.
    fn links_to_make<'w>(&self, wanted: &'w Self) -> Vec<(&'w PathBuf, &'w OsString, Attributes)> {
        let differs = |path: &Path, entry: &Entry| self.get(path) != Some(entry);
        let links = wanted.0.iter().filter(|(path, entry)| differs(path, entry));
        let mut links: Vec<_> = links
            .filter_map(|(path, entry)| match &entry.kind {
                Kind::Symlink(target) => Some((path, target, entry.attributes)),
                Kind::Directory | Kind::File(_) => None,
            })
            .collect();
        links.sort_by_key(|(path, ..)| (*path != Path::new(DATA), self.get(path).is_none()));
        links
    }

    /// Carries out `change`. One that is not possible has no effect.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::MakeDirectory(path, attributes) => {
                let kind = Kind::Directory;
                self.insert(path.clone(), entry(kind, *attributes));
            }
            Change::WriteFile(path, attributes, version) => {
                self.insert(path.clone(), entry(Kind::File(*version), *attributes));
            }
            Change::MakeSymlink(path, target, attributes) => {
                self.insert(path.clone(), entry(Kind::Symlink(target.clone()), *attributes));
            }
            Change::SetAttributes(path, entry) => self.insert(path.clone(), entry.clone()),
            Change::Rename { from, to } => {
                if let Some(entry) = self.0.remove(from) {
                    self.insert(to.clone(), entry);
                }
            }
            Change::Remove(path) => {
                self.0.remove(path);
            }
        }
    }

    /// `path` and what is below it, each before the directory that it is in.
    fn below(&self, path: &Path) -> Vec<PathBuf> {
        let below = self.0.keys().filter(|other| other.starts_with(path));
        below.rev().cloned().collect()
    }
}

fn entry(kind: Kind, attributes: Attributes) -> Entry {
    Entry { kind, attributes }
}

/// Changes so far, and the tree that they lead to.
struct Plan {
    now: Tree,
    changes: Vec<Change>,
}

impl Plan {
    fn push(&mut self, change: Change) {
        self.now.apply(&change);
        self.changes.push(change);
    }

    /// Makes a directory or file as it is wanted.
    fn make(&mut self, path: &Path, wanted: &Entry) {
        let known = self.now.get(path).cloned();
        let known = known.as_ref();
        match (&wanted.kind, known.map(|known| &known.kind)) {
            (Kind::Symlink(_), _) => {}
            (Kind::Directory, Some(Kind::Directory)) => self.set_attributes(path, known, wanted),
            (Kind::File(version), Some(Kind::File(old))) if version == old => {
                self.set_attributes(path, known, wanted);
            }
            (Kind::Directory, other) => {
                if other.is_some() {
                    self.push(Change::Remove(path.to_owned()));
                }
                self.push(Change::MakeDirectory(path.to_owned(), wanted.attributes));
            }
            (Kind::File(version), other) => {
                if other == Some(&Kind::Directory) {
                    self.remove_all(path);
                }
                self.push(Change::WriteFile(path.to_owned(), wanted.attributes, *version));
            }
        }
    }

    fn set_attributes(&mut self, path: &Path, known: Option<&Entry>, wanted: &Entry) {
        if known != Some(wanted) {
            self.push(Change::SetAttributes(path.to_owned(), wanted.clone()));
        }
    }

    /// Makes a link. One that replaces another is made beside it and renamed, as kubelet does, so that containers
    /// get the same events; unless the name beside it is taken, or what is to be replaced is a directory.
    fn link(&mut self, wanted: &Tree, path: &Path, target: &OsString, attributes: Attributes) {
        let make = |path: &Path| Change::MakeSymlink(path.to_owned(), target.clone(), attributes);
        match self.now.get(path).map(|known| &known.kind) {
            None => return self.push(make(path)),
            Some(Kind::Directory) => {
                self.remove_all(path);
                return self.push(make(path));
            }
            Some(Kind::File(_) | Kind::Symlink(_)) => {}
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(TEMPORARY);
        let beside = PathBuf::from(beside);
        let link = entry(Kind::Symlink(target.clone()), attributes);
        match self.now.get(&beside) {
            // The last look at the host was between the two steps.
            Some(known) if *known == link && wanted.get(&beside).is_none() => {}
            None => self.push(make(&beside)),
            Some(_) => return self.push(make(path)),
        }
        let (from, to) = (beside, path.to_owned());
        self.push(Change::Rename { from, to });
    }

    fn remove_all(&mut self, path: &Path) {
        for path in self.now.below(path) {
            self.push(Change::Remove(path));
        }
    }

    /// Removes what is not wanted: links first, which may lead to the rest.
    fn remove_others(&mut self, wanted: &Tree) {
        let is_wanted = |path: &PathBuf| wanted.get(path).is_some();
        let others = self.now.below(Path::new(""));
        let others = others.into_iter().filter(|path| !is_wanted(path));
        let (links, rest): (Vec<_>, Vec<_>) = others.partition(|path| {
            let kind = self.now.get(path).map(|entry| &entry.kind);
            matches!(kind, Some(Kind::Symlink(_)))
        });
        for path in links.into_iter().chain(rest) {
            self.push(Change::Remove(path));
        }
    }
}

#[cfg(test)]
mod tests;
