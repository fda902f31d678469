//! Operations on a mirror in a temporary directory, and requests that no shim sends.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use nacre_protocol::agent::{MakeDirectory, MakeSymlink, RemoveFile, RenameFile, SetAttributes};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tempfile::TempDir;

use super::*;

/// A mirror, and a directory beside it that no operation may touch.
struct Fixture {
    directory: TempDir,
    copy: Copy,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in [MIRROR_FILES, NEW, "outside"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        fs::write(directory.path().join("outside/secret"), "s").unwrap();
        let copy = Copy::open(directory.path()).unwrap();
        Self { directory, copy }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(MIRROR_FILES).join(name)
    }

    fn apply(&self, operation: Operation) -> Result<(), String> {
        self.copy.apply(&MirrorOperation {
            operation: Some(operation),
            ..Default::default()
        })
    }

    fn make_directory(&self, path: &str) -> Result<(), String> {
        self.apply(Operation::MakeDirectory(MakeDirectory {
            path: path.into(),
            attributes: attributes(0o750),
            ..Default::default()
        }))
    }

    fn part(&self, path: &str, offset: u64, content: &str, is_last: bool) -> Result<(), String> {
        self.apply(Operation::WriteFile(WriteFile {
            path: path.into(),
            offset,
            content: content.into(),
            attributes: if is_last { attributes(0o640) } else { None.into() },
            ..Default::default()
        }))
    }

    fn write(&self, path: &str, content: &str) -> Result<(), String> {
        self.part(path, 0, content, true)
    }

    fn link(&self, path: &str, target: &str) -> Result<(), String> {
        self.apply(Operation::MakeSymlink(MakeSymlink {
            path: path.into(),
            target: target.into(),
            attributes: attributes(0),
            ..Default::default()
        }))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), String> {
        self.apply(Operation::Rename(RenameFile {
            from: from.into(),
            to: to.into(),
            ..Default::default()
        }))
    }

    fn remove(&self, path: &str) -> Result<(), String> {
        self.apply(Operation::Remove(RemoveFile {
            path: path.into(),
            ..Default::default()
        }))
    }

    fn set_attributes(&self, path: &str, mode: u32) -> Result<(), String> {
        self.apply(Operation::SetAttributes(SetAttributes {
            path: path.into(),
            attributes: attributes(mode),
            ..Default::default()
        }))
    }
}

/// Of this process's own user, so that the tests need no root.
fn attributes(mode: u32) -> protobuf::MessageField<FileAttributes> {
    Some(FileAttributes {
        mode,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        mtime_s: 1_000_000_000,
        mtime_ns: 5,
        ..Default::default()
    })
    .into()
}

#[test]
fn a_version_is_swapped_as_kubelet_does() {
    let mirror = Fixture::new();
    mirror.make_directory("..1").unwrap();
    mirror.write("..1/key", "old").unwrap();
    mirror.link("..data", "..1").unwrap();
    mirror.link("key", "..data/key").unwrap();
    assert_eq!(fs::read_to_string(mirror.path("key")).unwrap(), "old");
    let file = fs::metadata(mirror.path("..1/key")).unwrap();
    assert_eq!(
        (
            file.mode() & 0o7777,
            file.mtime(),
            file.mtime_nsec(),
            file.nlink()
        ),
        (0o640, 1_000_000_000, 5, 1)
    );
    assert_eq!(fs::metadata(mirror.path("..1")).unwrap().mode() & 0o7777, 0o750);

    let watch = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    watch
        .add_watch(&mirror.path(""), AddWatchFlags::IN_ALL_EVENTS)
        .unwrap();
    mirror.make_directory("..2").unwrap();
    mirror.write("..2/key", "new").unwrap();
    mirror.link("..data_tmp", "..2").unwrap();
    mirror.rename("..data_tmp", "..data").unwrap();
    assert_eq!(fs::read_to_string(mirror.path("key")).unwrap(), "new");
    mirror.remove("..1/key").unwrap();
    mirror.remove("..1").unwrap();
    let changes = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVE | AddWatchFlags::IN_DELETE;
    let seen: Vec<_> = watch
        .read_events()
        .unwrap()
        .into_iter()
        .filter(|event| event.mask.intersects(changes))
        .map(|event| (event.mask & changes, event.name.unwrap().into_string().unwrap()))
        .collect();
    let want = [
        (AddWatchFlags::IN_CREATE, "..2"),
        (AddWatchFlags::IN_CREATE, "..data_tmp"),
        (AddWatchFlags::IN_MOVED_FROM, "..data_tmp"),
        (AddWatchFlags::IN_MOVED_TO, "..data"),
        (AddWatchFlags::IN_DELETE, "..1"),
    ];
    assert_eq!(seen, want.map(|(mask, name)| (mask, name.to_owned())));
}

#[test]
fn a_file_appears_with_its_last_part_and_replaces_what_had_its_name() {
    let mirror = Fixture::new();
    mirror.write("f", "old").unwrap();
    let old = fs::metadata(mirror.path("f")).unwrap().ino();
    mirror.part("f", 0, "ab", false).unwrap();
    mirror.part("f", 2, "cd", false).unwrap();
    assert_eq!(fs::read_to_string(mirror.path("f")).unwrap(), "old");
    mirror.part("f", 4, "ef", true).unwrap();
    assert_eq!(fs::read_to_string(mirror.path("f")).unwrap(), "abcdef");
    assert_ne!(fs::metadata(mirror.path("f")).unwrap().ino(), old);
    // A file whose parts stopped coming leaves nothing to the next one.
    mirror.part("g", 0, "longer", false).unwrap();
    mirror.write("h", "x").unwrap();
    assert_eq!(fs::read_to_string(mirror.path("h")).unwrap(), "x");
    assert!(!mirror.path("g").exists());
    mirror.link("f", "h").unwrap();
    assert_eq!(fs::read_link(mirror.path("f")).unwrap(), Path::new("h"));
    mirror.write("f", "a file again").unwrap();
    assert!(fs::symlink_metadata(mirror.path("f")).unwrap().is_file());
    assert_eq!(
        fs::read_dir(mirror.directory.path().join(NEW)).unwrap().count(),
        0
    );
}

#[test]
fn a_part_must_continue_the_file() {
    let mirror = Fixture::new();
    mirror.part("f", 0, "ab", false).unwrap();
    for offset in [1, 3, u64::MAX] {
        let error = mirror.part("f", offset, "x", true).unwrap_err();
        assert!(error.contains("a part begins at"), "{error}");
    }
    let other = Fixture::new();
    assert!(
        other
            .part("f", 2, "x", true)
            .unwrap_err()
            .contains("No such file")
    );
    assert!(!other.path("f").exists());
}

#[test]
fn no_path_leaves_the_mirror() {
    let mirror = Fixture::new();
    symlink("../outside", mirror.path("link")).unwrap();
    symlink("/", mirror.path("root")).unwrap();
    mirror.make_directory("d").unwrap();
    let long = "a/".repeat(3000) + "a";
    let hostile = [
        "",
        "/",
        "/f",
        ".",
        "..",
        "../outside/f",
        "d/../../outside/f",
        "link/f",
        "link/secret",
        "root/f",
        "d/..",
        "./f",
        "f\0g",
        "missing/f",
        &long,
    ];
    for path in hostile {
        assert!(mirror.write(path, "x").is_err(), "{path:?}");
        assert!(mirror.make_directory(path).is_err(), "{path:?}");
        assert!(mirror.link(path, "t").is_err(), "{path:?}");
        assert!(mirror.remove(path).is_err(), "{path:?}");
        assert!(mirror.rename(path, "g").is_err(), "{path:?}");
        assert!(mirror.rename("d", path).is_err(), "{path:?}");
        let refused = mirror.set_attributes(path, 0o700);
        assert!(path.is_empty() || refused.is_err(), "{path:?}");
    }
    let error = mirror.write(&long, "x").unwrap_err();
    assert!(error.len() < 400, "{error}");
    let outside: Vec<_> = fs::read_dir(mirror.directory.path().join("outside"))
        .unwrap()
        .collect();
    assert_eq!(outside.len(), 1);
    assert_eq!(
        fs::read_to_string(mirror.directory.path().join("outside/secret")).unwrap(),
        "s"
    );
    assert!(mirror.path("d").is_dir());
}

#[test]
fn links_are_never_followed_as_the_last_name() {
    let mirror = Fixture::new();
    let secret = mirror.directory.path().join("outside/secret");
    let mode = fs::metadata(&secret).unwrap().mode();
    symlink("../outside/secret", mirror.path("link")).unwrap();
    symlink("../outside", mirror.path("directory")).unwrap();
    assert!(mirror.set_attributes("link", 0o777).is_err());
    assert!(mirror.make_directory("directory").is_err());
    mirror.remove("directory").unwrap();
    mirror.write("link", "x").unwrap();
    assert_eq!(fs::read_to_string(&secret).unwrap(), "s");
    assert_eq!(fs::metadata(&secret).unwrap().mode(), mode);
    // Neither is what takes the place of an incomplete file.
    symlink(
        "../outside/secret",
        mirror.directory.path().join(NEW).join(INCOMPLETE),
    )
    .unwrap();
    assert!(mirror.part("f", 1, "x", true).is_err());
    mirror.write("f", "x").unwrap();
    assert_eq!(fs::read_to_string(&secret).unwrap(), "s");
}

#[test]
fn repeated_operations_have_no_effect_and_errors_name_the_path() {
    let mirror = Fixture::new();
    for _ in 0..2 {
        mirror.make_directory("d").unwrap();
        mirror.write("d/f", "x").unwrap();
        mirror.link("l", "d").unwrap();
        mirror.set_attributes("", 0o711).unwrap();
        mirror.set_attributes("d/f", 0o600).unwrap();
    }
    let error = mirror.remove("d").unwrap_err();
    assert!(
        error.contains("removing \"d\"") && error.contains("not empty"),
        "{error}"
    );
    for _ in 0..2 {
        mirror.remove("d/f").unwrap();
    }
    assert_eq!(fs::metadata(mirror.path("")).unwrap().mode() & 0o7777, 0o711);
    for target in ["", &"t".repeat(5000)] {
        assert!(
            mirror
                .link("x", target)
                .unwrap_err()
                .contains("expected a target")
        );
    }
    assert!(mirror.copy.apply(&MirrorOperation::new()).is_err());
}
