//! Files of a root file system, which the guest uses without opening them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::files::open_files;
use super::*;

const O_WRONLY_CREAT: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
/// The flag of attributes that tells our guest kernel that it need not open the file.
const ATTR_EXCLUSIVE: u32 = 1 << 31;
/// Set in the handle of a directory that was not opened.
const NOT_OPENED: u64 = 1 << 63;
/// Descriptors that the server keeps of files, and of directories.
const MAX_FILES: usize = 256;
const MAX_STREAMS: usize = 64;

/// A container's root file system.
fn rootfs(guest: &mut Guest) -> u64 {
    fs::create_dir_all(guest.path().join("c/rootfs")).unwrap();
    guest.walk("c/rootfs").nodeid
}

impl Guest {
    /// Creates a file for writing only; returns its number. Its handle must be 0.
    fn make(&mut self, parent: u64, name: &str) -> u64 {
        let body = Body::default().u32(O_WRONLY_CREAT.cast_unsigned()).u32(0o644);
        let reply = self
            .call(CREATE, parent, body.u32(0o022).u32(0).name(name))
            .unwrap();
        assert_eq!(u64_at(&reply, 128), 0, "the handle");
        EntryOut::read(&reply).nodeid
    }

    fn forget(&mut self, nodeid: u64) {
        let request = self.request(FORGET, nodeid, &Body::default().u64(1));
        self.driver.set_bytes(REQUEST_AT, &request);
        self.driver
            .offer(0, &[readable(REQUEST_AT, request.len() as u32)]);
        self.driver.kick(0);
        self.driver.wait_used(0);
    }

    /// The names after offset `at` that fit into a page, and the offset of the last one. `reader` tells
    /// several readers of the directory apart.
    fn list(&mut self, directory: u64, reader: u64, at: u64) -> (Vec<String>, u64) {
        let body = Body::default()
            .u64(NOT_OPENED | reader)
            .u64(at)
            .u32(4096)
            .u32(0)
            .u64(0)
            .u64(0);
        let reply = self.call(READDIR, directory, body).unwrap();
        let (mut rest, mut names, mut last) = (&reply[..], Vec::new(), at);
        while !rest.is_empty() {
            last = u64_at(rest, 8);
            let length = u32_at(rest, 16) as usize;
            names.push(String::from_utf8(rest[24..24 + length].to_vec()).unwrap());
            rest = &rest[(24 + length).next_multiple_of(8)..];
        }
        names.retain(|name| !name.starts_with('.'));
        (names, last)
    }
}

#[test]
fn a_file_is_used_without_a_handle() {
    let mut guest = Guest::new();
    let rootfs = rootfs(&mut guest);
    let file = guest.make(rootfs, "file");
    assert_eq!(guest.write(file, 0, 0, b"0123456789"), Ok(10));
    assert_eq!(guest.read(file, 0, 2, 100).unwrap(), b"23456789");
    let other = guest.make(rootfs, "other");
    let body = Body::default()
        .u64(0)
        .u64(5)
        .u64(other)
        .u64(0)
        .u64(0)
        .u64(5)
        .u64(0);
    assert_eq!(u32_at(&guest.call(COPY_FILE_RANGE, file, body).unwrap(), 0), 5);
    let body = Body::default().u64(0).u64(0).u64(5000).u32(0).u32(0);
    guest.call(FALLOCATE, other, body).unwrap();
    let body = Body::default()
        .u64(0)
        .u64(0)
        .u32(libc::SEEK_DATA.cast_unsigned())
        .u32(0);
    assert_eq!(u64_at(&guest.call(LSEEK, other, body).unwrap(), 0), 0);
    // FATTR_SIZE | FATTR_FH, as ftruncate does.
    let body = Body::default()
        .u32(1 << 3 | 1 << 6)
        .u32(0)
        .u64(0)
        .u64(4)
        .bytes(&[0; 64]);
    guest.call(SETATTR, other, body).unwrap();
    for (opcode, node) in [(FSYNC, other), (FSYNCDIR, rootfs)] {
        guest
            .call(opcode, node, Body::default().u64(0).u32(0).u32(0))
            .unwrap();
    }
    for opcode in [FLUSH, RELEASE] {
        guest
            .call(opcode, other, Body::default().u64(0).u64(0).u64(0))
            .unwrap();
    }
    assert_eq!(fs::read(guest.path().join("c/rootfs/other")).unwrap(), b"5678");
}

#[test]
fn opening_a_file_truncates_it_and_returns_no_handle() {
    let mut guest = Guest::new();
    let rootfs = rootfs(&mut guest);
    let file = guest.make(rootfs, "file");
    guest.write(file, 0, 0, b"text").unwrap();
    assert_eq!(guest.open(file, libc::O_WRONLY | libc::O_TRUNC), Ok(0));
    assert_eq!(fs::metadata(guest.path().join("c/rootfs/file")).unwrap().len(), 0);
    assert_eq!(guest.write(file, 0, 0, b"new"), Ok(3));
    assert_eq!(guest.read(file, 0, 0, 10).unwrap(), b"new");
}

#[test]
fn a_deleted_file_is_used_until_it_is_forgotten() {
    let mut guest = Guest::new();
    let rootfs = rootfs(&mut guest);
    let file = guest.make(rootfs, "unlinked");
    guest
        .call(UNLINK, rootfs, Body::default().name("unlinked"))
        .unwrap();
    assert_eq!(guest.write(file, 0, 0, b"text"), Ok(4));
    // Others are used until its descriptor is closed, and it is opened again.
    for number in 0..MAX_FILES {
        guest.make(rootfs, &format!("file-{number}"));
    }
    assert_eq!(guest.read(file, 0, 0, 10).unwrap(), b"text");
    assert_ne!(open_files("unlinked"), 0);
    guest.forget(file);
    assert_eq!(open_files("unlinked"), 0);
}

#[test]
fn a_file_is_read_before_it_is_written() {
    let mut guest = Guest::new();
    let rootfs = rootfs(&mut guest);
    fs::write(guest.path().join("c/rootfs/replaced"), "text").unwrap();
    let file = guest.lookup(rootfs, "replaced").unwrap().nodeid;
    assert_eq!(guest.read(file, 0, 0, 10).unwrap(), b"text");
    // The descriptor for reading is replaced by one for both.
    assert_eq!(guest.write(file, 0, 4, b"s"), Ok(1));
    assert_eq!(guest.read(file, 0, 0, 10).unwrap(), b"texts");
    assert_eq!(open_files("rootfs/replaced"), 2, "the inode's, and one for both");
}

#[test]
fn descriptors_are_bounded() {
    let mut guest = Guest::new();
    let rootfs = rootfs(&mut guest);
    let files: Vec<u64> = (0..MAX_FILES + 50)
        .map(|number| {
            let file = guest.make(rootfs, &format!("bounded-file-{number}"));
            guest.write(file, 0, 0, &[number as u8]).unwrap();
            file
        })
        .collect();
    assert_eq!(open_files("bounded-file-"), files.len() + MAX_FILES);
    for (number, file) in files.into_iter().enumerate() {
        assert_eq!(guest.read(file, 0, 0, 10).unwrap(), [number as u8]);
    }
    let directory = guest.mkdir(rootfs, "bounded-directory");
    for number in 0..500 {
        fs::write(
            guest.path().join(format!("c/rootfs/bounded-directory/{number}")),
            "",
        )
        .unwrap();
    }
    for reader in 0..MAX_STREAMS as u64 + 10 {
        guest.list(directory, reader, 0);
    }
    assert_eq!(open_files("bounded-directory"), 1 + MAX_STREAMS);
    guest.restart();
    assert_eq!(open_files("bounded-"), 0);
}

#[test]
fn a_directory_is_listed_while_its_files_are_removed() {
    let mut guest = Guest::new();
    let rootfs = rootfs(&mut guest);
    let directory = guest.mkdir(rootfs, "listed");
    for number in 0..1000 {
        fs::write(guest.path().join(format!("c/rootfs/listed/file-{number}")), "").unwrap();
    }
    let (mut at, mut removed) = (0, 0);
    loop {
        let (names, last) = guest.list(directory, 1, at);
        if names.is_empty() {
            break;
        }
        for name in names {
            guest
                .call(UNLINK, directory, Body::default().name(&name))
                .unwrap();
            removed += 1;
        }
        // Another reader, whose stream is not this one's.
        guest.list(directory, 2, 0);
        at = last;
    }
    assert_eq!(removed, 1000);
    guest.call(RMDIR, rootfs, Body::default().name("listed")).unwrap();
    guest.forget(directory);
    assert_eq!(open_files("listed"), 0, "streams that were not read to their end");
}

#[test]
fn only_a_root_file_system_that_can_be_written_is_exclusive() {
    let mut guest = Guest::new();
    for directory in ["c/rootfs/etc", "c/mounts/0"] {
        fs::create_dir_all(guest.path().join(directory)).unwrap();
    }
    for (path, expected) in [
        ("c", 0),
        ("c/rootfs", ATTR_EXCLUSIVE),
        ("c/rootfs/etc", ATTR_EXCLUSIVE),
        ("c/mounts", 0),
        ("c/mounts/0", 0),
    ] {
        assert_eq!(guest.walk(path).flags & ATTR_EXCLUSIVE, expected, "{path}");
    }
    let volume = guest.walk("c/mounts/0").nodeid;
    let (file, handle) = guest.create(volume, "file", 0o644).unwrap();
    assert_ne!(handle, 0, "the host sees that a file of a volume is open");
    assert_eq!(guest.write(file.nodeid, handle, 0, b"text"), Ok(4));
}

#[test]
fn writing_to_a_read_only_root_file_system_fails_when_it_is_opened() {
    use nix::mount::{MsFlags, mount};
    let none = None::<&str>;
    // A mount namespace of this thread, and of the worker's, which it spawns.
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_err() {
        println!("skipped: a mount namespace needs CAP_SYS_ADMIN");
        return;
    }
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
    let mut guest = Guest::new();
    let directory = guest.path().join("c/rootfs");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("file"), "text").unwrap();
    mount(Some(&directory), &directory, none, MsFlags::MS_BIND, none).unwrap();
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, &directory, none, read_only, none).unwrap();
    let file = guest.walk("c/rootfs/file");
    assert_eq!(file.flags & ATTR_EXCLUSIVE, 0);
    assert_eq!(guest.open(file.nodeid, libc::O_WRONLY), Err(libc::EROFS));
    assert_eq!(guest.open(file.nodeid, libc::O_RDONLY), Ok(0));
    assert_eq!(guest.read(file.nodeid, 0, 0, 10).unwrap(), b"text");
    assert_eq!(guest.write(file.nodeid, 0, 0, b"new"), Err(libc::EROFS));
    assert_eq!(fs::metadata(directory.join("file")).unwrap().size(), 4);
    // Layers below a writable layer are not written, so that their files need not be opened.
    let lower = guest.path().join("c/lower");
    fs::create_dir(&lower).unwrap();
    mount(Some(&directory), &lower, none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &lower, none, read_only, none).unwrap();
    let file = guest.walk("c/lower/file");
    assert_eq!(file.flags & ATTR_EXCLUSIVE, ATTR_EXCLUSIVE);
    assert_eq!(guest.read(file.nodeid, 0, 0, 10).unwrap(), b"text");
    assert_eq!(guest.write(file.nodeid, 0, 0, b"new"), Err(libc::EROFS));
    drop(guest);
}

#[test]
fn a_write_takes_set_user_id_away_if_the_guest_says_so() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let mut guest = Guest::new();
    let rootfs = rootfs(&mut guest);
    fs::set_permissions(guest.path().join("c/rootfs"), fs::Permissions::from_mode(0o777)).unwrap();
    // After this, the library does not know its capabilities any more.
    guest.user = 1000;
    guest.make(rootfs, "of-a-user");
    guest.user = 0;
    let file = guest.make(rootfs, "program");
    let path = guest.path().join("c/rootfs/program");
    // FUSE_WRITE_KILL_SUIDGID
    for (flags, expected) in [(0, 0o6777), (1 << 2, 0o777)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        let body = Body::default().u64(0).u64(0).u32(1).u32(flags).u64(0).u64(0);
        guest.call(WRITE, file, body.bytes(b"x")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, expected);
    }
    // FATTR_SIZE, and FATTR_KILL_SUIDGID
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    let body = Body::default().u32(1 << 3 | 1 << 11).u32(0).bytes(&[0; 80]);
    guest.call(SETATTR, file, body).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777, "truncated");
    // FUSE_OPEN_KILL_SUIDGID
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    let flags = libc::O_WRONLY | libc::O_TRUNC;
    let body = Body::default().u32(flags.cast_unsigned()).u32(1);
    guest.call(OPEN, file, body).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777, "opened");
}
