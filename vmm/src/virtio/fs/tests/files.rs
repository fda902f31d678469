//! What a guest does with files, and how long it may cache their names and attributes.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

use super::*;

const LONG_SECONDS: u64 = 24 * 60 * 60;

impl Guest {
    pub fn open(&mut self, nodeid: u64, flags: i32) -> Result<u64, i32> {
        let body = Body::default().u32(flags.cast_unsigned()).u32(0);
        self.call(OPEN, nodeid, body).map(|reply| u64_at(&reply, 0))
    }

    pub fn read(&mut self, nodeid: u64, handle: u64, at: u64, size: u32) -> Reply {
        let body = Body::default()
            .u64(handle)
            .u64(at)
            .u32(size)
            .u32(0)
            .u64(0)
            .u32(0)
            .u32(0);
        self.call(READ, nodeid, body)
    }

    pub fn write(&mut self, nodeid: u64, handle: u64, at: u64, bytes: &[u8]) -> Result<u32, i32> {
        let body = Body::default().u64(handle).u64(at).u32(bytes.len() as u32).u32(0);
        let body = body.u64(0).u32(0).u32(0).bytes(bytes);
        self.call(WRITE, nodeid, body).map(|reply| u32_at(&reply, 0))
    }

    pub fn create(&mut self, parent: u64, name: &str, mode: u32) -> Result<(EntryOut, u64), i32> {
        let flags = (libc::O_CREAT | libc::O_EXCL | libc::O_RDWR).cast_unsigned();
        let body = Body::default().u32(flags).u32(mode).u32(0o022).u32(0).name(name);
        let reply = self.call(CREATE, parent, body)?;
        Ok((EntryOut::read(&reply), u64_at(&reply, 128)))
    }

    pub fn mkdir(&mut self, parent: u64, name: &str) -> u64 {
        let body = Body::default().u32(0o755).u32(0o022).name(name);
        EntryOut::read(&self.call(MKDIR, parent, body).unwrap()).nodeid
    }

    fn release(&mut self, nodeid: u64, handle: u64) {
        let body = Body::default().u64(handle).u32(0).u32(0).u64(0);
        self.call(RELEASE, nodeid, body).unwrap();
    }
}

#[test]
fn guest_and_host_read_each_others_files() {
    let mut guest = Guest::new();
    let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    fs::write(guest.path().join("from-host"), &bytes).unwrap();
    let entry = guest.lookup(ROOT, "from-host").unwrap();
    assert_eq!(entry.size, 1 << 20);
    let handle = guest.open(entry.nodeid, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(entry.nodeid, handle, 0, 1 << 20).unwrap(), bytes);
    assert_eq!(
        guest.read(entry.nodeid, handle, (1 << 20) - 3, 100).unwrap(),
        bytes[(1 << 20) - 3..]
    );
    assert!(guest.read(entry.nodeid, handle, 1 << 20, 100).unwrap().is_empty());
    guest.release(entry.nodeid, handle);

    let (entry, handle) = guest.create(ROOT, "from-guest", 0o640).unwrap();
    assert_eq!(
        guest.write(entry.nodeid, handle, 0, &bytes[..300_000]).unwrap(),
        300_000
    );
    assert_eq!(
        guest
            .write(entry.nodeid, handle, 300_000, &bytes[300_000..])
            .unwrap(),
        (1 << 20) - 300_000
    );
    guest
        .call(FLUSH, entry.nodeid, Body::default().u64(handle).u64(0).u64(0))
        .unwrap();
    guest
        .call(FSYNC, entry.nodeid, Body::default().u64(handle).u64(0))
        .unwrap();
    guest.release(entry.nodeid, handle);
    assert_eq!(fs::read(guest.path().join("from-guest")).unwrap(), bytes);
    assert_eq!(
        fs::metadata(guest.path().join("from-guest"))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o640
    );
}

#[test]
fn owners_and_modes_reach_the_host_unchanged() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let mut guest = Guest::new();
    fs::set_permissions(guest.path(), fs::Permissions::from_mode(0o777)).unwrap();
    guest.user = 1000;
    let (entry, _) = guest.create(ROOT, "of-a-user", 0o600).unwrap();
    assert_eq!(entry.owner, (1000, 1000));
    guest.user = 0;
    let (entry, _) = guest.create(ROOT, "of-root", 0o600).unwrap();
    assert_eq!(entry.owner, (0, 0));
    let change = |valid: u32| {
        let body = Body::default().u32(valid).u32(0).bytes(&[0; 60]);
        body.u32(0o4751).u32(0).u32(1000).u32(65534).u32(0)
    };
    // FATTR_UID and FATTR_GID, then FATTR_MODE, as chown and chmod do.
    guest.call(SETATTR, entry.nodeid, change(0b110)).unwrap();
    guest.call(SETATTR, entry.nodeid, change(0b001)).unwrap();
    let on_host = fs::metadata(guest.path().join("of-root")).unwrap();
    assert_eq!(
        (on_host.uid(), on_host.gid(), on_host.mode() & 0o7777),
        (1000, 65534, 0o4751)
    );
}

#[test]
fn every_type_of_file_can_be_created() {
    let mut guest = Guest::new();
    let directory = guest.mkdir(ROOT, "directory");
    let target = "../somewhere/else";
    guest
        .call(SYMLINK, directory, Body::default().name("link").name(target))
        .unwrap();
    let link = guest.lookup(directory, "link").unwrap();
    assert_eq!(
        guest.call(READLINK, link.nodeid, Body::default()).unwrap(),
        target.as_bytes()
    );
    let body = Body::default()
        .u32(libc::S_IFIFO | 0o644)
        .u32(0)
        .u32(0)
        .u32(0)
        .name("fifo");
    let fifo = EntryOut::read(&guest.call(MKNOD, directory, body).unwrap());
    assert_eq!(fifo.mode, libc::S_IFIFO | 0o644);
    assert!(
        guest.open(fifo.nodeid, libc::O_RDONLY).is_err(),
        "a FIFO of the host was opened"
    );
    let (file, _) = guest.create(directory, "file", 0o644).unwrap();
    guest
        .call(LINK, directory, Body::default().u64(file.nodeid).name("hard"))
        .unwrap();

    let on_host = guest.path().join("directory");
    assert_eq!(fs::read_link(on_host.join("link")).unwrap(), Path::new(target));
    assert!(
        fs::symlink_metadata(on_host.join("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(fs::metadata(on_host.join("hard")).unwrap().nlink(), 2);
    for name in ["link", "fifo", "file", "hard"] {
        guest.call(UNLINK, directory, Body::default().name(name)).unwrap();
    }
}

#[test]
fn files_are_renamed_and_removed() {
    let mut guest = Guest::new();
    let directory = guest.mkdir(ROOT, "directory");
    for name in ["kept", "renamed"] {
        guest.create(directory, name, 0o644).unwrap();
    }
    let on_host = guest.path().join("directory");
    let body = Body::default()
        .u64(ROOT)
        .u32(0)
        .u32(0)
        .name("renamed")
        .name("moved");
    guest.call(RENAME2, directory, body).unwrap();
    assert!(on_host.join("../moved").exists() && !on_host.join("renamed").exists());
    guest
        .call(UNLINK, directory, Body::default().name("kept"))
        .unwrap();
    guest
        .call(RMDIR, ROOT, Body::default().name("directory"))
        .unwrap();
    assert!(!on_host.exists());
    assert_eq!(guest.call(STATFS, ROOT, Body::default()).unwrap().len(), 80);
}

#[test]
fn caching_depends_on_the_subtree() {
    let mut guest = Guest::new();
    for directory in ["c/rootfs/etc", "c/lower/etc", "c/mounts/0/sub", "c/other"] {
        fs::create_dir_all(guest.path().join(directory)).unwrap();
    }
    fs::write(guest.path().join("c/rootfs/etc/file"), "").unwrap();
    fs::write(guest.path().join("c/mounts/1"), "").unwrap();
    let expected = [
        ("c", 0, 0),
        ("c/rootfs", 0, LONG_SECONDS),
        ("c/rootfs/etc", LONG_SECONDS, LONG_SECONDS),
        ("c/rootfs/etc/file", LONG_SECONDS, LONG_SECONDS),
        ("c/lower", 0, LONG_SECONDS),
        ("c/lower/etc", LONG_SECONDS, LONG_SECONDS),
        ("c/mounts", 0, 0),
        ("c/mounts/0", 0, 0),
        ("c/mounts/0/sub", 0, 0),
        ("c/mounts/1", 0, 0),
        ("c/other", 0, 0),
    ];
    for (path, entry_seconds, attr_seconds) in expected {
        let entry = guest.walk(path);
        assert_eq!(
            (entry.entry_seconds, entry.attr_seconds),
            (entry_seconds, attr_seconds),
            "{path}"
        );
        let reply = guest
            .call(GETATTR, entry.nodeid, Body::default().u64(0).u64(0))
            .unwrap();
        assert_eq!(u64_at(&reply, 0), attr_seconds, "getattr of {path}");
    }
    // The absence of a name is cached only in a rootfs.
    let etc = guest.walk("c/rootfs/etc").nodeid;
    let absent = guest.lookup(etc, "absent").unwrap();
    assert_eq!((absent.nodeid, absent.entry_seconds), (0, LONG_SECONDS));
    for directory in ["c", "c/mounts", "c/mounts/0"] {
        let nodeid = guest.walk(directory).nodeid;
        assert_eq!(guest.lookup(nodeid, "absent").unwrap_err(), libc::ENOENT);
    }
    assert_eq!(guest.lookup(ROOT, "later").unwrap_err(), libc::ENOENT);
    fs::create_dir(guest.path().join("later")).unwrap();
    guest.lookup(ROOT, "later").unwrap();
    // A created file is cached, too.
    let (entry, _) = guest.create(etc, "made", 0o644).unwrap();
    assert_eq!(
        (entry.entry_seconds, entry.attr_seconds),
        (LONG_SECONDS, LONG_SECONDS)
    );
}

#[test]
fn only_files_of_the_host_s_kernel_are_read_past_their_size() {
    let mut guest = Guest::new();
    let rdonly = libc::O_RDONLY.cast_unsigned();
    for (directory, is_direct) in [
        ("c/kernel/0/d", 1),
        ("c/mounts/0", 0),
        ("c/rootfs/kernel", 0),
        ("kernel/x", 0),
    ] {
        fs::create_dir_all(guest.path().join(directory)).unwrap();
        fs::write(guest.path().join(directory).join("file"), "").unwrap();
        let file = guest.walk(&format!("{directory}/file"));
        assert_eq!(
            (file.entry_seconds, file.attr_seconds) == (0, 0),
            directory != "c/rootfs/kernel"
        );
        let reply = guest.call(OPEN, file.nodeid, Body::default().u32(rdonly).u32(0));
        // FOPEN_DIRECT_IO.
        assert_eq!(u32_at(&reply.unwrap(), 8) & 1, is_direct, "{directory}");
    }
}

#[test]
fn a_directory_is_listed_with_its_entries() {
    let mut guest = Guest::new();
    fs::create_dir_all(guest.path().join("c/rootfs")).unwrap();
    for n in 0..100 {
        fs::write(guest.path().join(format!("c/rootfs/file-{n}")), "x").unwrap();
    }
    let nodeid = guest.walk("c/rootfs").nodeid;
    let reply = guest
        .call(OPENDIR, nodeid, Body::default().u32(0).u32(0))
        .unwrap();
    let handle = u64_at(&reply, 0);
    let (mut at, mut names) = (0, Vec::new());
    loop {
        let body = Body::default()
            .u64(handle)
            .u64(at)
            .u32(4096)
            .u32(0)
            .u64(0)
            .u32(0)
            .u32(0);
        let reply = guest.call(READDIRPLUS, nodeid, body).unwrap();
        if reply.is_empty() {
            break;
        }
        let mut rest = &reply[..];
        while !rest.is_empty() {
            let entry = EntryOut::read(rest);
            at = u64_at(rest, 128 + 8);
            let length = u32_at(rest, 128 + 16) as usize;
            let name = String::from_utf8(rest[128 + 24..128 + 24 + length].to_vec()).unwrap();
            if !name.starts_with('.') {
                assert_eq!(entry.entry_seconds, LONG_SECONDS);
                names.push(name);
            }
            rest = &rest[(128 + 24 + length).next_multiple_of(8)..];
        }
    }
    assert_eq!(names.len(), 100);
}

/// The number of open descriptors of this process whose path contains `word`.
pub fn open_files(word: &str) -> usize {
    let entries = fs::read_dir("/proc/self/fd").unwrap();
    let targets = entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    targets
        .filter(|target| target.to_string_lossy().contains(word))
        .count()
}

#[test]
fn forgetting_one_or_many_closes_the_descriptors() {
    let mut guest = Guest::new();
    let mut nodes = Vec::new();
    for n in 0..200 {
        let name = format!("forgotten-{n}");
        fs::write(guest.path().join(&name), "").unwrap();
        nodes.push(guest.lookup(ROOT, &name).unwrap().nodeid);
    }
    assert_eq!(open_files("forgotten-"), 200);
    let mut send = |opcode: u32, nodeid: u64, body: &Body| {
        let request = guest.request(opcode, nodeid, body);
        guest.driver.set_bytes(REQUEST_AT, &request);
        guest
            .driver
            .offer(0, &[readable(REQUEST_AT, request.len() as u32)]);
        guest.driver.kick(0);
        assert_eq!(guest.driver.wait_used(0).1, 0);
    };
    let batch = nodes.split_off(100);
    for nodeid in nodes {
        send(FORGET, nodeid, &Body::default().u64(1));
    }
    assert_eq!(open_files("forgotten-"), 100);
    let count = Body::default().u32(100).u32(0);
    let body = batch
        .into_iter()
        .fold(count, |body, nodeid| body.u64(nodeid).u64(1));
    send(BATCH_FORGET, 0, &body);
    assert_eq!(open_files("forgotten-"), 0);
}

#[test]
fn a_guest_with_too_many_open_files_gets_enfile() {
    use std::ffi::CString;
    use virtiofsd::filesystem::{Context, FileSystem as _, FsOptions};
    use virtiofsd::fuse::InHeader;

    let root = tempfile::tempdir().unwrap();
    let tree = Tree::new(root.path().to_owned(), prepared().proc_self_fd, 9).unwrap();
    tree.init(FsOptions::SUBMOUNTS).unwrap();
    let mut refused = None;
    for n in 0..20 {
        let name = format!("{n}");
        fs::write(root.path().join(&name), "").unwrap();
        let context = Context::from(InHeader::default());
        if let Err(error) = tree.lookup(context, ROOT, &CString::new(name).unwrap()) {
            refused.get_or_insert((n, error.raw_os_error()));
        }
    }
    assert_eq!(refused, Some((8, Some(libc::ENFILE))));
}

#[test]
fn the_configuration_space_has_the_tag() {
    let guest = Guest::new();
    let mut space = [0xff; 48];
    guest.device.config().read(0, &mut space);
    assert_eq!(&space[..8], b"nacre\0\0\0");
    assert_eq!(space[36..], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for tag in ["", "a-tag-of-more-than-thirty-six-bytes-is-too-long"] {
        let config = Config {
            tag: tag.to_owned(),
            root: "/".into(),
            prepared: prepared(),
        };
        assert!(spawn(config, &guest.driver.env()).is_err(), "{tag}");
    }
}

#[test]
fn a_read_with_o_noatime_keeps_the_access_time() {
    let mut guest = Guest::new();
    let path = guest.path().join("file");
    fs::write(&path, "content").unwrap();
    let entry = guest.lookup(ROOT, "file").unwrap();
    let mut atime_after_read = |flags| {
        let past = std::time::UNIX_EPOCH + std::time::Duration::from_secs(5);
        let times = fs::FileTimes::new().set_accessed(past);
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_times(times)
            .unwrap();
        let handle = guest.open(entry.nodeid, flags).unwrap();
        guest.read(entry.nodeid, handle, 0, 100).unwrap();
        guest.release(entry.nodeid, handle);
        fs::metadata(&path).unwrap().atime()
    };
    assert_eq!(atime_after_read(libc::O_RDONLY | libc::O_NOATIME), 5);
    if atime_after_read(libc::O_RDONLY) == 5 {
        println!("the file system of the test keeps no access times");
    }
}
