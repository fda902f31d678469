//! Requests that wait for the host's disk, on a sync thread that a test makes wait.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::virtio::fs::syncs::MAX_UNFINISHED;

const SYNCFS: u32 = 50;

/// Where request number `index` is, and its reply.
fn request_at(index: u64) -> u64 {
    REQUEST_AT + index * 256
}

fn reply_at(index: u64) -> u64 {
    REPLY_AT + index * 256
}

/// A guest whose sync thread waits, before each call, for a message or for the end of its sender.
fn with_slow_disk() -> (Guest, Sender<()>) {
    let (release, released): (_, Receiver<()>) = channel();
    let guest = Guest::with_device(|config, env| {
        let thread_env = env.clone();
        let build = move || {
            FsDataPath::with_syncs(config, |files| {
                Syncs::spawn(&thread_env, move |ctx, job| {
                    let _ = released.recv();
                    carry_out(&files, ctx, job)
                })
            })
        };
        Device::spawn(spec("nacre").unwrap(), env, build).unwrap()
    });
    (guest, release)
}

impl Guest {
    /// Makes request number `index` available without waiting for its reply; returns its unique ID.
    fn send(&mut self, index: u64, opcode: u32, nodeid: u64, body: &Body) -> u64 {
        let request = self.request(opcode, nodeid, body);
        self.driver.set_bytes(request_at(index), &request);
        let chain = [
            readable(request_at(index), request.len() as u32),
            writable(reply_at(index), 128),
        ];
        self.driver.offer(1, &chain);
        self.driver.kick(1);
        self.unique
    }

    fn send_fsync(&mut self, index: u64, nodeid: u64, handle: u64) -> u64 {
        self.send(index, FSYNC, nodeid, &Body::default().u64(handle).u64(0))
    }

    /// Waits for a reply, which must be that to request number `index`.
    fn wait_reply(&mut self, index: u64, unique: u64) -> Reply {
        let (_, written) = self.driver.wait_used(1);
        let (found, reply) = self.reply_at(reply_at(index), written);
        assert_eq!(found, unique);
        reply
    }

    fn is_alive(&mut self) {
        self.call(STATFS, ROOT, Body::default()).unwrap();
    }
}

#[test]
fn other_requests_do_not_wait_for_a_sync() {
    let (mut guest, release) = with_slow_disk();
    let (file, handle) = guest.create(ROOT, "file", 0o644).unwrap();
    guest.write(file.nodeid, handle, 0, b"text").unwrap();
    let fsync = guest.send_fsync(1, file.nodeid, handle);
    // Each of them would find the reply to FSYNC if that came first.
    guest.is_alive();
    guest.write(file.nodeid, handle, 4, b"more").unwrap();
    guest.lookup(ROOT, "file").unwrap();
    release.send(()).unwrap();
    assert_eq!(guest.wait_reply(1, fsync), Ok(Vec::new()));
    let syncfs = guest.send(1, SYNCFS, ROOT, &Body::default().u64(0));
    guest.is_alive();
    release.send(()).unwrap();
    assert_eq!(guest.wait_reply(1, syncfs), Ok(Vec::new()));
}

#[test]
fn the_file_of_a_sync_stays_open() {
    let (mut guest, release) = with_slow_disk();
    std::fs::create_dir_all(guest.path().join("c/rootfs")).unwrap();
    for index in 0..300 {
        std::fs::write(guest.path().join(format!("c/rootfs/{index}")), "text").unwrap();
    }
    let rootfs = guest.walk("c/rootfs").nodeid;
    let first = guest.lookup(rootfs, "0").unwrap().nodeid;
    let fsync = guest.send_fsync(1, first, 0);
    guest.is_alive();
    // More files than the server keeps open.
    for index in 1..300 {
        let other = guest.lookup(rootfs, &format!("{index}")).unwrap().nodeid;
        let body = Body::default().u64(0).u64(0).u32(16).u32(0).u64(0).u64(0);
        assert_eq!(guest.call(READ, other, body).unwrap(), b"text");
    }
    release.send(()).unwrap();
    assert_eq!(guest.wait_reply(1, fsync), Ok(Vec::new()));
}

#[test]
fn errors_are_replied_at_once_or_later() {
    let (mut guest, release) = with_slow_disk();
    let unknown = guest.send_fsync(1, 12_345, 12_345);
    release.send(()).unwrap();
    assert_eq!(guest.wait_reply(1, unknown), Err(libc::EBADF));
    // In a root file system, the worker opens the file.
    std::fs::create_dir_all(guest.path().join("c/rootfs")).unwrap();
    let rootfs = guest.walk("c/rootfs").nodeid;
    let body = Body::default()
        .u32(0o644 | libc::S_IFIFO)
        .u32(0)
        .u32(0)
        .u32(0)
        .name("fifo");
    let fifo = EntryOut::read(&guest.call(MKNOD, rootfs, body).unwrap()).nodeid;
    let refused = guest.send_fsync(1, fifo, 0);
    assert!(guest.wait_reply(1, refused).is_err());
    // Without its argument.
    let short = guest.send(1, FSYNC, ROOT, &Body::default());
    assert_eq!(guest.wait_reply(1, short), Err(libc::EINVAL));
}

#[test]
fn the_sync_thread_takes_a_bounded_number_of_requests() {
    let (mut guest, release) = with_slow_disk();
    let (file, handle) = guest.create(ROOT, "file", 0o644).unwrap();
    for index in 1..=MAX_UNFINISHED as u64 {
        guest.send_fsync(index, file.nodeid, handle);
    }
    guest.is_alive();
    let further = guest.send_fsync(100, file.nodeid, handle);
    assert_eq!(guest.wait_reply(100, further), Ok(Vec::new()));
    // They count until they are finished, also if the driver has forgotten them.
    guest.restart();
    let (file, handle) = guest.create(ROOT, "other", 0o644).unwrap();
    let again = guest.send_fsync(1, file.nodeid, handle);
    assert_eq!(guest.wait_reply(1, again), Ok(Vec::new()));
    drop(release);
    guest.is_alive();
}

#[test]
fn a_pause_waits_for_a_sync_and_a_reset_does_not() {
    let (mut guest, release) = with_slow_disk();
    let (file, handle) = guest.create(ROOT, "file", 0o644).unwrap();
    let fsync = guest.send_fsync(1, file.nodeid, handle);
    guest.is_alive();
    guest.device.set_timeout(std::time::Duration::from_millis(50));
    guest.device.pause().unwrap_err();
    release.send(()).unwrap();
    guest.device.set_timeout(std::time::Duration::from_secs(10));
    guest.device.pause().unwrap();
    assert_eq!(guest.wait_reply(1, fsync), Ok(Vec::new()));
    guest.device.resume().unwrap();
    guest.send_fsync(1, file.nodeid, handle);
    guest.is_alive();
    guest.restart();
    // Its result belongs to no request any more.
    release.send(()).unwrap();
    let (file, handle) = guest.create(ROOT, "other", 0o644).unwrap();
    let later = guest.send_fsync(2, file.nodeid, handle);
    release.send(()).unwrap();
    assert_eq!(guest.wait_reply(2, later), Ok(Vec::new()));
}
