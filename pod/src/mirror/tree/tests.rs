//! Random changes of a host against a strict model of a file system: each change must be possible when its turn
//! comes, the result must be the host's tree, and `..data` must lead to a complete version after every change.

use super::*;

/// Numbers from a fixed seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(number).unwrap() % limit
    }
}

const PLAIN: Attributes = Attributes {
    mode: 0o644,
    uid: 0,
    gid: 1000,
};

fn file(inode: u64) -> Entry {
    let version = Version {
        inode,
        size: inode,
        modified: (1, 2),
    };
    entry(Kind::File(version), PLAIN)
}

fn directory() -> Entry {
    entry(Kind::Directory, PLAIN)
}

fn link(target: impl Into<OsString>) -> Entry {
    entry(Kind::Symlink(target.into()), PLAIN)
}

fn tree(entries: &[(&str, Entry)]) -> Tree {
    let mut tree = Tree::empty();
    tree.insert(PathBuf::new(), directory());
    for (path, entry) in entries {
        tree.insert(path.into(), entry.clone());
    }
    tree
}

/// Carries `change` out as the kernel does; the reason if it is not possible.
fn strictly(tree: &mut Tree, change: &Change) -> Result<(), String> {
    let kind = |path: &Path| tree.get(path).map(|entry| entry.kind.clone());
    let has_parent = |path: &Path| {
        path.parent()
            .is_some_and(|parent| kind(parent) == Some(Kind::Directory))
    };
    let is_possible = match change {
        Change::MakeDirectory(path, _) => has_parent(path) && kind(path).is_none(),
        Change::WriteFile(path, ..) | Change::MakeSymlink(path, ..) => {
            has_parent(path) && kind(path) != Some(Kind::Directory)
        }
        Change::SetAttributes(path, entry) => kind(path).as_ref() == Some(&entry.kind),
        Change::Rename { from, to } => {
            let is_file = |kind: Option<Kind>| kind != Some(Kind::Directory);
            kind(from).is_some() && is_file(kind(from)) && has_parent(to) && is_file(kind(to))
        }
        Change::Remove(path) => {
            kind(path).is_some() && tree.below(path).len() == 1 && !path.as_os_str().is_empty()
        }
    };
    if !is_possible {
        return Err(format!("{change:?} is not possible in {tree:?}"));
    }
    tree.apply(change);
    Ok(())
}

/// The names in the version that `..data` leads to, with their entries; None if it leads nowhere.
fn current(tree: &Tree) -> Option<Vec<(PathBuf, Entry)>> {
    let target = tree.data()?;
    tree.get(target)?;
    let names = tree.0.iter().filter(|(path, _)| path.starts_with(target));
    let relative = |path: &PathBuf| path.strip_prefix(target).unwrap().to_owned();
    Some(
        names
            .map(|(path, entry)| (relative(path), entry.clone()))
            .collect(),
    )
}

/// The changes from `old` to `new`, carried out one by one.
fn follow(old: &Tree, new: &Tree) -> Vec<Tree> {
    let mut now = old.clone();
    let mut states = Vec::new();
    for change in old.changes(new) {
        strictly(&mut now, &change).unwrap_or_else(|reason| panic!("{reason}\nfrom {old:?}\nto {new:?}"));
        states.push(now.clone());
    }
    assert_eq!(now, *new);
    assert_eq!(new.changes(new), []);
    states
}

#[test]
fn an_update_is_carried_out_as_kubelet_does_it() {
    let old = tree(&[
        ("..1", directory()),
        ("..1/gone", file(1)),
        ("..1/key", file(2)),
        ("..data", link("..1")),
        ("gone", link("..data/gone")),
        ("key", link("..data/key")),
    ]);
    let new = tree(&[
        ("..2", directory()),
        ("..2/key", file(3)),
        ("..2/new", file(4)),
        ("..data", link("..2")),
        ("key", link("..data/key")),
        ("new", link("..data/new")),
    ]);
    let Entry { attributes, .. } = directory();
    let Kind::File(key) = file(3).kind else { panic!() };
    let Kind::File(added) = file(4).kind else { panic!() };
    let remove = |path: &str| Change::Remove(path.into());
    let want = [
        Change::MakeDirectory("..2".into(), attributes),
        Change::WriteFile("..2/key".into(), PLAIN, key),
        Change::WriteFile("..2/new".into(), PLAIN, added),
        Change::MakeSymlink("..data_tmp".into(), "..2".into(), PLAIN),
        Change::Rename {
            from: "..data_tmp".into(),
            to: "..data".into(),
        },
        Change::MakeSymlink("new".into(), "..data/new".into(), PLAIN),
        remove("gone"),
        remove("..1/key"),
        remove("..1/gone"),
        remove("..1"),
    ];
    assert_eq!(old.changes(&new), want);
    follow(&old, &new);
}

#[test]
fn a_link_that_was_seen_before_its_rename_is_renamed() {
    let version = |data: &str, more: &[(&str, Entry)]| {
        let mut all = vec![("..1", directory()), ("..2", directory()), ("..data", link(data))];
        all.extend_from_slice(more);
        tree(&all)
    };
    let between = version("..1", &[("..data_tmp", link("..2"))]);
    let rename = Change::Rename {
        from: "..data_tmp".into(),
        to: "..data".into(),
    };
    assert_eq!(between.changes(&version("..2", &[])), [rename]);
    // If the name beside it is taken, the link is replaced as it is.
    let make = Change::MakeSymlink("..data".into(), "..2".into(), PLAIN);
    for taken in [link("..2"), file(1), directory()] {
        let taken = [("..data_tmp", taken)];
        assert_eq!(
            version("..1", &taken).changes(&version("..2", &taken)),
            std::slice::from_ref(&make)
        );
    }
    follow(
        &version("..1", &[("..data_tmp", directory())]),
        &version("..2", &[]),
    );
}

#[test]
fn attributes_alone_need_no_content() {
    let old = tree(&[("d", directory()), ("d/f", file(1)), ("l", link("d"))]);
    let mut new = old.clone();
    let mut changed = file(1);
    changed.attributes.mode = 0o600;
    new.insert("d/f".into(), changed.clone());
    assert_eq!(old.changes(&new), [Change::SetAttributes("d/f".into(), changed)]);
    let first = Tree::empty().changes(&old);
    assert_eq!(first[0], Change::SetAttributes(PathBuf::new(), directory()));
    follow(&Tree::empty(), &old);
}

#[test]
fn a_file_that_becomes_a_directory_is_replaced_with_all_below_it() {
    let kinds = || {
        [
            tree(&[
                ("a", directory()),
                ("a/b", directory()),
                ("a/b/c", file(1)),
                ("a/d", link("b")),
            ]),
            tree(&[("a", file(2)), ("b", file(3))]),
            tree(&[("a", link("b")), ("b", directory()), ("b/c", file(4))]),
            tree(&[]),
        ]
    };
    for old in kinds() {
        for new in kinds() {
            follow(&old, &new);
        }
    }
}

/// A host whose volume is changed as kubelet does, step by step, and at random besides.
struct Host {
    random: Random,
    tree: Tree,
    next: u64,
}

impl Host {
    fn new(seed: u64) -> Self {
        let mut host = Self {
            random: Random(seed),
            tree: tree(&[]),
            next: 0,
        };
        host.update();
        host
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The states of the volume during an update.
    fn update(&mut self) -> Vec<Tree> {
        let mut states = Vec::new();
        let old = self.tree.data().map(Path::to_owned);
        let version = format!("..{}", self.fresh());
        self.tree.insert((&version).into(), directory());
        states.push(self.tree.clone());
        let keys: Vec<String> = (0..5)
            .filter(|_| self.random.below(3) > 0)
            .map(|key| format!("key{key}"))
            .collect();
        for key in &keys {
            let inode = self.fresh();
            self.tree.insert(format!("{version}/{key}").into(), file(inode));
            states.push(self.tree.clone());
        }
        self.tree.insert("..data_tmp".into(), link(&version));
        states.push(self.tree.clone());
        self.tree.0.remove(Path::new("..data_tmp"));
        self.tree.insert(DATA.into(), link(&version));
        states.push(self.tree.clone());
        for key in 0..5 {
            let name = format!("key{key}");
            if keys.contains(&name) {
                self.tree.insert((&name).into(), link(format!("..data/{name}")));
            } else {
                self.tree.0.remove(Path::new(&name));
            }
            states.push(self.tree.clone());
        }
        let gone = old.map(|old| self.tree.below(&old));
        for path in gone.into_iter().flatten() {
            self.tree.0.remove(&path);
            states.push(self.tree.clone());
        }
        states
    }

    /// Makes, changes or removes something that is not kubelet's.
    fn disturb(&mut self) {
        let names = ["a", "b", "a/a", "a/b", "b/a", "a/b/a", "..data_tmp", "a_tmp"];
        let path = Path::new(names[self.random.below(names.len())]);
        if self.tree.get(path.parent().unwrap()).map(|entry| &entry.kind) != Some(&Kind::Directory) {
            return;
        }
        for path in self.tree.below(path) {
            self.tree.0.remove(&path);
        }
        let inode = self.fresh();
        let made = match self.random.below(4) {
            0 => directory(),
            1 => file(inode),
            2 => link(names[self.random.below(names.len())]),
            _ => return,
        };
        self.tree.insert(path.into(), made);
    }
}

#[test]
fn a_mirror_follows_random_changes_and_always_has_a_complete_version() {
    for seed in 1..=30 {
        let mut host = Host::new(seed);
        let mut mirror = Tree::empty();
        // Versions that were current on the host.
        let mut complete = vec![current(&host.tree)];
        for _ in 0..30 {
            for _ in 0..host.random.below(4) {
                host.disturb();
            }
            // The mirror may look at any of the states, and misses most.
            let mut states = host.update();
            complete.extend(states.iter().map(current));
            states.retain(|_| host.random.below(4) == 0);
            states.push(host.tree.clone());
            for state in states {
                for now in follow(&mirror, &state) {
                    let data = now.data().is_some();
                    assert!(!data || complete.contains(&current(&now)), "seed {seed}: {now:?}");
                    assert!(data || mirror.data().is_none(), "seed {seed}: {now:?}");
                }
                mirror = state;
            }
        }
        assert_eq!(mirror, host.tree);
    }
}

#[test]
fn changes_that_stop_half_way_are_made_good_later() {
    for seed in 1..=50 {
        let mut host = Host::new(seed);
        let mut mirror = Tree::empty();
        let mut complete = vec![current(&host.tree)];
        for _ in 0..20 {
            host.disturb();
            complete.extend(host.update().iter().map(current));
            let mut changes = mirror.changes(&host.tree);
            changes.truncate(host.random.below(changes.len() + 1));
            for change in &changes {
                strictly(&mut mirror, change).unwrap();
                assert!(
                    mirror.data().is_none() || complete.contains(&current(&mirror)),
                    "seed {seed}"
                );
            }
        }
        follow(&mirror, &host.tree);
    }
}
