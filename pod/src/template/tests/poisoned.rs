//! Templates that are not what a VMM has saved: none is opened, nothing blocks, and the next maker replaces it.

use std::fs::{File, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixListener;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

/// Not the user of this process.
const OTHER_USER: u32 = 12345;

/// Spoils the object at a path.
type Spoil = fn(&Path);

/// In place of a directory or a file.
const IN_PLACE_OF_ANY: [(&str, Spoil); 4] = [
    ("a symbolic link", |path| {
        let elsewhere = path.with_extension("elsewhere.building");
        fs::rename(path, &elsewhere).unwrap();
        symlink(elsewhere, path).unwrap();
    }),
    ("a FIFO", |path| {
        set_aside(path);
        mkfifo(path, Mode::S_IRUSR).unwrap();
    }),
    ("a socket", |path| {
        set_aside(path);
        UnixListener::bind(path).unwrap();
    }),
    ("writable by others", |path| {
        let mode = fs::metadata(path).unwrap().permissions().mode() | 0o002;
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }),
];

fn set_aside(path: &Path) {
    fs::rename(path, path.with_extension("aside.removed")).unwrap();
}

fn expect_replaced(host: &Host, name: &str, how: &str) {
    let key = host.key();
    let expected = if name == "." { "directory" } else { "regular file" };
    let check = |absent: Absent| {
        let text = absent.to_string();
        assert!(
            matches!(absent, Absent::Unusable { .. })
                && text.starts_with(&format!("template {key} can't be used: "))
                && text.contains(&format!(
                    "must be a {expected} that belongs to the user of this process"
                )),
            "{name}, {how}: {text}"
        );
    };
    check(host.store.open(&key).unwrap_err());
    check(host.store.find(&key).unwrap_err());
    assert!(host.store.list().unwrap().is_empty(), "{name}, {how}");
    assert_eq!(host.make().unwrap(), Made::Now, "{name}, {how}");
    host.store.open(&key).unwrap();
    assert_eq!(host.names(), [key], "{name}, {how}");
}

#[test]
fn what_is_in_place_of_a_template_is_named_and_replaced() {
    for name in [".", "state", "memory"] {
        let mut ways = IN_PLACE_OF_ANY.to_vec();
        if name == "." {
            ways.push(("a file", |path| {
                set_aside(path);
                fs::write(path, "").unwrap();
            }));
        } else {
            ways.push(("a directory", |path| {
                set_aside(path);
                fs::create_dir(path).unwrap();
            }));
        }
        if nix::unistd::geteuid().is_root() {
            ways.push(("of another user", |path| {
                chown(path, Some(OTHER_USER), None).unwrap()
            }));
        }
        for (how, spoil) in ways {
            let host = Host::that_saves();
            host.make().unwrap();
            let directory = host.directory.path().join("templates").join(host.key());
            spoil(&if name == "." {
                directory
            } else {
                directory.join(name)
            });
            expect_replaced(&host, name, how);
        }
    }
}

#[test]
fn what_is_no_template_is_collected() {
    let host = Host::that_saves();
    host.make().unwrap();
    let store = host.directory.path().join("templates");
    mkfifo(&store.join("fifo"), Mode::S_IRUSR).unwrap();
    mkfifo(&store.join("fifo.removed"), Mode::S_IRUSR).unwrap();
    fs::write(store.join("file"), "").unwrap();
    symlink(host.directory.path(), store.join("link")).unwrap();
    host.store.collect().unwrap();
    assert_eq!(host.names(), [host.key()]);
    assert!(host.config.kernel.exists());
}

#[test]
fn a_template_without_its_kind_is_usable_and_collected() {
    let host = Host::that_saves();
    host.make().unwrap();
    let key = host.key();
    fs::remove_file(
        host.directory
            .path()
            .join("templates")
            .join(&key)
            .join("kind.json"),
    )
    .unwrap();
    host.store.open(&key).unwrap();
    assert_eq!(host.store.list().unwrap()[0].kind, None);
    assert_eq!(host.store.collect().unwrap().removed, [key]);
}

#[test]
fn a_store_that_others_can_change_is_not_used() {
    let host = Host::that_saves();
    host.make().unwrap();
    let (key, store) = (host.key(), host.directory.path().join("templates"));
    let check = |how: &str| {
        let absent = host.store.open(&key).unwrap_err();
        assert!(matches!(absent, Absent::Unreadable(_)), "{how}: {absent:?}");
        let error = host.make().unwrap_err().to_string();
        assert!(error.contains("templates: must be a directory"), "{how}: {error}");
    };
    fs::set_permissions(&store, Permissions::from_mode(0o777)).unwrap();
    check("writable");
    fs::set_permissions(&store, Permissions::from_mode(0o700)).unwrap();
    host.store.open(&key).unwrap();
    let elsewhere = host.directory.path().join("elsewhere");
    fs::rename(&store, &elsewhere).unwrap();
    symlink(&elsewhere, &store).unwrap();
    check("a symbolic link");
    assert!(elsewhere.join(&key).exists());
}

#[test]
fn only_the_template_that_failed_is_removed() {
    let host = Host::that_saves();
    let key = host.key();
    host.make().unwrap();
    let mut first = host.store.open(&key).unwrap();
    host.store.remove(&key).unwrap();
    host.make().unwrap();
    let successor = host.store.open(&key).unwrap();
    assert_ne!(first.id, successor.id);
    assert!(!host.store.remove_same(&key, first.id).unwrap());
    host.store.open(&key).unwrap();
    assert!(host.store.remove_same(&key, successor.id).unwrap());
    assert!(!host.store.remove_same(&key, successor.id).unwrap());
    assert_eq!(host.store.open(&key).unwrap_err(), Absent::None);
    // A VMM that has it can go on.
    let mut memory = String::new();
    first.memory.read_to_string(&mut memory).unwrap();
    assert_eq!(memory, "memory\n");
}

#[test]
fn what_is_in_place_of_a_record_does_not_block() {
    let host = Host::that_saves();
    let (key, store) = (host.key(), host.directory.path().join("templates"));
    crate::state::make_directory(&store).unwrap();
    let record = store.join(format!("{key}.failed"));
    mkfifo(&record, Mode::S_IRUSR).unwrap();
    assert_eq!(host.store.open(&key).unwrap_err(), Absent::None);
    assert_eq!(host.make().unwrap(), Made::Now);
    assert!(!record.exists());
    host.store.remove(&key).unwrap();
    let file = File::create(&record).unwrap();
    file.set_len(1 << 40).unwrap();
    let Absent::Failed(text) = host.store.open(&key).unwrap_err() else {
        panic!("a record is found");
    };
    assert!(text.len() <= 64 << 10, "{} bytes", text.len());
}

#[test]
fn a_template_that_can_t_be_completed_is_removed_and_recorded() {
    // The name under which kind.json is written.
    let host = Host::new(
        r#"for word; do [ "$last" = --save ] && saved=$word; last=$word; done
umask 022; mkdir -p "$saved/kind.new" && echo >"$saved/state" && echo >"$saved/memory""#,
    );
    let error = host.make().unwrap_err().to_string();
    assert!(error.contains("kind.new: Is a directory"), "{error}");
    let key = host.key();
    assert!(matches!(host.store.open(&key), Err(Absent::Failed(text)) if text.contains(&error)));
    assert_eq!(host.names(), [format!("{key}.failed")]);
}
