//! Real directories, and the limits.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixListener;

use tempfile::TempDir;

use super::*;

fn scanned(directory: &Path) -> Result<Tree, Error> {
    scan(File::open(directory).unwrap(), |_| Ok(()))
}

/// A volume as kubelet makes it.
fn volume() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("..1")).unwrap();
    fs::write(at("..1/key"), "value").unwrap();
    symlink("..1", at("..data")).unwrap();
    symlink("..data/key", at("key")).unwrap();
    directory
}

#[test]
fn a_volume_is_read_with_owners_modes_and_targets() {
    let volume = volume();
    let tree = scanned(volume.path()).unwrap();
    assert_eq!(
        (tree.len(), tree.bytes(), tree.data()),
        (5, 4096, Some(Path::new("..1")))
    );
    let file = fs::metadata(volume.path().join("..1/key")).unwrap();
    let entry = tree.get(Path::new("..1/key")).unwrap();
    let want = Attributes {
        mode: file.mode() & 0o7777,
        uid: file.uid(),
        gid: file.gid(),
    };
    assert_eq!(entry.attributes, want);
    let want = Version {
        inode: file.ino(),
        size: 5,
        modified: (file.mtime(), u32::try_from(file.mtime_nsec()).unwrap()),
    };
    assert_eq!(entry.kind, Kind::File(want));
    let key = tree.get(Path::new("key")).unwrap();
    assert_eq!(key.kind, Kind::Symlink("..data/key".into()));
}

#[test]
fn each_directory_is_watched_before_it_is_read() {
    let volume = volume();
    fs::create_dir(volume.path().join("..1/below")).unwrap();
    let mut count = 0;
    let root = File::open(volume.path()).unwrap();
    let tree = scan(&root, |directory| {
        count += 1;
        // What appears after the call is found, too.
        if count <= 3 {
            rustix::fs::mkdirat(directory, format!("new{count}"), Mode::RWXU)?;
        }
        Ok(())
    });
    assert!(tree.unwrap().get(Path::new("new1")).is_some());
    assert_eq!(count, 6);
    let refused = scan(&root, |_| Err(io::Error::from_raw_os_error(28)));
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("No space left"), "{text}");
}

#[test]
fn a_version_that_is_gone_is_a_change() {
    let volume = volume();
    fs::remove_dir_all(volume.path().join("..1")).unwrap();
    assert!(matches!(scanned(volume.path()), Err(Error::NoVersion)));
    // The link is moved and the old version removed while it is read.
    let volume = self::volume();
    let at = |name: &str| volume.path().join(name);
    fs::create_dir(at("..2")).unwrap();
    let root = File::open(volume.path()).unwrap();
    let mut calls = 0;
    let scanned = scan(&root, |_| {
        calls += 1;
        if calls == 2 {
            symlink("..2", at("..data_tmp"))?;
            fs::rename(at("..data_tmp"), at("..data"))?;
        }
        Ok(())
    });
    assert!(matches!(scanned, Err(Error::Changed)), "{scanned:?}");
}

#[test]
fn links_are_not_followed() {
    let volume = volume();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    symlink(outside.path(), volume.path().join("out")).unwrap();
    let tree = scanned(volume.path()).unwrap();
    let target = outside.path().as_os_str().to_owned();
    assert_eq!(tree.get(Path::new("out")).unwrap().kind, Kind::Symlink(target));
    assert!(tree.get(Path::new("out/secret")).is_none());
    let root = File::open(volume.path()).unwrap();
    for path in ["out/secret", "key", "..data/key", "../x", "/etc/passwd"] {
        assert!(
            open_below(root.as_fd(), Path::new(path), OFlags::empty()).is_err(),
            "{path}"
        );
    }
    open_below(root.as_fd(), Path::new("..1/key"), OFlags::empty()).unwrap();
}

#[test]
fn what_a_mirror_can_t_have_is_refused_by_name() {
    let text = |volume: &TempDir| scanned(volume.path()).unwrap_err().to_string();
    let large = volume();
    let file = File::create(large.path().join("..1/large")).unwrap();
    file.set_len(MAX_MIRROR_BYTES - 4096).unwrap();
    scanned(large.path()).unwrap();
    file.set_len(MAX_MIRROR_BYTES - 4095).unwrap();
    assert_eq!(text(&large), "its bytes are more than 67108864");

    let socket = volume();
    let _listener = UnixListener::bind(socket.path().join("socket")).unwrap();
    assert_eq!(
        text(&socket),
        "\"socket\" is neither a file nor a directory nor a symbolic link"
    );

    let many = volume();
    for number in 0..MAX_DIRECTORIES {
        fs::create_dir(many.path().join(number.to_string())).unwrap();
    }
    assert_eq!(text(&many), "its directories are more than 1024");
    let many = volume();
    for number in 0..MAX_MIRROR_ENTRIES {
        symlink("x", many.path().join(number.to_string())).unwrap();
    }
    assert_eq!(text(&many), "its files are more than 16384");
}
