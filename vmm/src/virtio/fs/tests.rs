//! The device on a temporary directory, with a FUSE client on in-memory guest RAM.
#![allow(clippy::cast_possible_truncation, reason = "sizes of a test guest are small")]

mod attributes;
mod files;
mod malformed;
mod saved;
mod syncs;
mod unopened;

use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::virtio::Activation;
use crate::virtio::testing::{BUFFERS, Driver, assert_passes_confined, readable, writable};

// Opcodes of FUSE requests, as in linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const READLINK: u32 = 5;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const SETXATTR: u32 = 21;
const GETXATTR: u32 = 22;
const LISTXATTR: u32 = 23;
const REMOVEXATTR: u32 = 24;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const FSYNCDIR: u32 = 30;
const CREATE: u32 = 35;
const BATCH_FORGET: u32 = 42;
const FALLOCATE: u32 = 43;
const READDIRPLUS: u32 = 44;
const RENAME2: u32 = 45;
const LSEEK: u32 = 46;
const COPY_FILE_RANGE: u32 = 47;

/// FUSE_ROOT_ID.
const ROOT: u64 = 1;

const REQUEST_AT: u64 = BUFFERS;
const REPLY_AT: u64 = BUFFERS + (4 << 20);
const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;

/// Builds the body of a request, field by field.
#[derive(Default, Clone)]
struct Body(Vec<u8>);

impl Body {
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn name(mut self, name: &str) -> Self {
        self.0.extend(name.bytes());
        self.0.push(0);
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

/// The reply to a request: its payload, or the errno.
type Reply = Result<Vec<u8>, i32>;

/// The fields of fuse_entry_out, the reply to LOOKUP and to the requests that create files, that the tests
/// use.
#[derive(Debug)]
struct EntryOut {
    nodeid: u64,
    entry_seconds: u64,
    attr_seconds: u64,
    size: u64,
    mode: u32,
    owner: (u32, u32),
    /// Of the attributes.
    flags: u32,
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl EntryOut {
    fn read(bytes: &[u8]) -> Self {
        Self {
            nodeid: u64_at(bytes, 0),
            entry_seconds: u64_at(bytes, 16),
            attr_seconds: u64_at(bytes, 24),
            size: u64_at(bytes, 40 + 8),
            mode: u32_at(bytes, 40 + 60),
            owner: (u32_at(bytes, 40 + 68), u32_at(bytes, 40 + 72)),
            flags: u32_at(bytes, 40 + 84),
        }
    }
}

/// The bytes of a request of this user and group.
fn request(opcode: u32, nodeid: u64, unique: u64, user: u32, body: &Body) -> Vec<u8> {
    let length = (IN_HEADER + body.0.len()) as u32;
    let header = Body::default().u32(length).u32(opcode).u64(unique).u64(nodeid);
    header.u32(user).u32(user).u32(77).u32(0).bytes(&body.0).0
}

/// As for the jail if this process may clone mounts, else as without a jail.
fn prepared() -> Prepared {
    Prepared::before_jail()
        .or_else(|_| Prepared::without_jail())
        .unwrap()
}

/// A FUSE client and the directory that it sees.
struct Guest {
    driver: Driver,
    device: Device,
    root: TempDir,
    /// User and group ID of the requests.
    user: u32,
    /// The last request's unique ID.
    unique: u64,
}

impl Guest {
    fn new() -> Self {
        Self::with_device(|config, env| spawn(config, env).unwrap())
    }

    /// With the device that `spawn` creates.
    fn with_device(spawn: impl FnOnce(Config, &Env) -> Device) -> Self {
        let mut guest = Self::bound(spawn);
        guest.init();
        guest
    }

    /// As [`Guest::with_device`], before the first request.
    fn bound(spawn: impl FnOnce(Config, &Env) -> Device) -> Self {
        let root = tempfile::tempdir().unwrap();
        let driver = Driver::new(QUEUE_SIZES);
        let config = Config {
            tag: "nacre".to_owned(),
            root: root.path().to_owned(),
            prepared: prepared(),
        };
        let mut device = spawn(config, &driver.env());
        device.activate(driver.activation(device.features())).unwrap();
        Self {
            driver,
            device,
            root,
            user: 0,
            unique: 0,
        }
    }

    fn init(&mut self) {
        self.init_with(0);
    }

    /// Sends INIT with these flags beyond the first 32, and checks what the device enables.
    fn init_with(&mut self, flags2: u32) {
        // All flags that Linux 6.1 offers, FUSE_INIT_EXT among them.
        let flags = 0x7bff_fffb_u32;
        let body = Body::default()
            .u32(7)
            .u32(37)
            .u32(128 * 1024)
            .u32(flags)
            .u32(flags2)
            .bytes(&[0; 44]);
        let reply = self.call(INIT, 0, body).unwrap();
        assert_eq!(
            (u32_at(&reply, 0), u32_at(&reply, 20)),
            (7, 1 << 20),
            "major, max_write"
        );
        let enabled = u32_at(&reply, 12);
        assert_ne!(enabled & 1 << 27, 0, "submounts");
        assert_ne!(enabled & 1 << 23, 0, "cached symlinks");
        assert_eq!(enabled & 1 << 16, 0, "no writeback cache");
    }

    /// Resets the device and starts again with INIT.
    fn restart(&mut self) {
        self.driver.reactivate(&mut self.device);
        self.init();
    }

    fn path(&self) -> &Path {
        self.root.path()
    }

    /// The bytes of a request with the next unique ID.
    fn request(&mut self, opcode: u32, nodeid: u64, body: &Body) -> Vec<u8> {
        self.unique += 2;
        request(opcode, nodeid, self.unique, self.user, body)
    }

    /// Sends a request and waits for its reply, with a payload of at most a MiB.
    fn call(&mut self, opcode: u32, nodeid: u64, body: Body) -> Reply {
        let request = self.request(opcode, nodeid, &body);
        self.driver.set_bytes(REQUEST_AT, &request);
        let (header, rest) = (IN_HEADER as u32, (request.len() - IN_HEADER) as u32);
        let chain = [
            readable(REQUEST_AT, header),
            readable(REQUEST_AT + u64::from(header), rest),
            writable(REPLY_AT, OUT_HEADER as u32),
            writable(REPLY_AT + OUT_HEADER as u64, 1 << 20),
        ];
        self.driver.offer(1, &chain);
        self.driver.kick_if_wanted(1);
        let (_, written) = self.driver.wait_used(1);
        let (unique, reply) = self.reply_at(REPLY_AT, written);
        assert_eq!(unique, self.unique);
        reply
    }

    /// The unique ID and the content of a reply of `written` bytes at `address`.
    fn reply_at(&self, address: u64, written: u32) -> (u64, Reply) {
        let reply = self.driver.bytes(address, written as usize);
        assert_eq!(u32_at(&reply, 0), written);
        let content = match u32_at(&reply, 4).cast_signed() {
            0 => Ok(reply[OUT_HEADER..].to_vec()),
            error => Err(-error),
        };
        (u64_at(&reply, 8), content)
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        self.call(LOOKUP, parent, Body::default().name(name))
            .map(|reply| EntryOut::read(&reply))
    }

    /// Looks up a path below the root, name by name.
    fn walk(&mut self, path: &str) -> EntryOut {
        let mut parent = ROOT;
        let mut last = None;
        for name in path.split('/') {
            let entry = self
                .lookup(parent, name)
                .unwrap_or_else(|error| panic!("{path}: {error}"));
            parent = entry.nodeid;
            last = Some(entry);
        }
        last.unwrap()
    }
}

#[test]
fn dotdot_of_the_prepared_descriptor_is_itself() {
    use rustix::fs::{Mode, OFlags, fstat, openat};
    let fd = match Prepared::before_jail() {
        Ok(prepared) => prepared.proc_self_fd,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            println!("skipped: cloning a mount needs CAP_SYS_ADMIN");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let up = openat(&fd, "../../..", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let (here, up) = (fstat(&fd).unwrap(), fstat(&up).unwrap());
    assert_eq!((here.st_dev, here.st_ino), (up.st_dev, up.st_ino));
    let file = openat(
        &fd,
        "../../../etc/passwd",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    assert_eq!(file.unwrap_err(), rustix::io::Errno::NOENT);
    // Its purpose: it resolves a descriptor of this process by its number.
    openat(&fd, "0", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
}

#[test]
fn buffers_may_be_in_memory_that_was_added() {
    use std::sync::Arc;
    use vm_memory::{Bytes as _, GuestAddress, GuestRegionMmap};
    const ADDED: u64 = 1 << 30;
    let mut guest = Guest::new();
    std::fs::write(guest.path().join("file"), "text").unwrap();
    let region = GuestRegionMmap::from_range(GuestAddress(ADDED), 8192, None).unwrap();
    let grown = Arc::new(guest.driver.memory.insert_region(Arc::new(region)).unwrap());
    guest.device.memory_sender().give(Arc::clone(&grown));
    let request = guest.request(LOOKUP, ROOT, &Body::default().name("file"));
    grown.write_slice(&request, GuestAddress(ADDED)).unwrap();
    let length = request.len() as u32;
    guest
        .driver
        .offer(1, &[readable(ADDED, length), writable(ADDED + 4096, 4096)]);
    guest.driver.kick_if_wanted(1);
    let (_, written) = guest.driver.wait_used(1);
    let mut reply = vec![0; written as usize];
    grown.read_slice(&mut reply, GuestAddress(ADDED + 4096)).unwrap();
    assert_eq!(u32_at(&reply, 4), 0, "the error of the reply");
    assert_eq!(EntryOut::read(&reply[OUT_HEADER..]).size, 4);
}

#[test]
fn files_work_confined() {
    assert_passes_confined("virtio::fs::tests::files::");
}

#[test]
fn unopened_files_work_confined() {
    assert_passes_confined("virtio::fs::tests::unopened::");
}

#[test]
fn a_restored_device_works_confined() {
    assert_passes_confined("virtio::fs::tests::saved::");
}

#[test]
fn syncs_work_confined() {
    assert_passes_confined("virtio::fs::tests::syncs::");
}

#[test]
fn attributes_work_confined() {
    assert_passes_confined("virtio::fs::tests::attributes::");
}

#[test]
fn every_operation_works_confined() {
    assert_passes_confined("virtio::fs::tests::malformed::every_operation");
}
