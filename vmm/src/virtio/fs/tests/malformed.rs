//! Requests that a driver must not send.

use super::*;
use crate::virtio::testing::{Fields, Prng, hammer, is_confined, malformed_chains};

impl Guest {
    /// Asserts that the device still serves files.
    fn assert_alive(&mut self) {
        std::fs::write(self.path().join("alive"), "12345").unwrap();
        assert_eq!(self.lookup(ROOT, "alive").unwrap().size, 5);
    }

    /// Writes `request` to guest memory and offers `chain`; returns the number of bytes that the device
    /// wrote.
    fn send_raw(&mut self, request: &[u8], chain: &[Fields]) -> u32 {
        self.driver.set_bytes(REQUEST_AT, request);
        self.driver.offer(1, chain);
        self.driver.kick(1);
        self.driver.wait_used(1).1
    }
}

#[test]
fn malformed_chains_fail_cleanly() {
    for queue in [0, 1] {
        for (name, chain) in malformed_chains() {
            let mut guest = Guest::new();
            guest.driver.reactivate(&mut guest.device);
            guest.driver.offer_raw(queue, &chain);
            guest.driver.kick(queue);
            guest.driver.wait_used_or_reset(queue);
            guest.restart();
            guest.assert_alive();
            assert!(
                guest.driver.reports.try_recv().is_err(),
                "{name} stopped the device"
            );
        }
    }
}

#[test]
fn malformed_requests_get_einval_or_no_reply() {
    let mut guest = Guest::new();
    let request = guest.request(GETATTR, ROOT, &Body::default().u64(0).u64(0));
    let length = request.len() as u32;
    let reply = writable(REPLY_AT, 4096);
    for (name, chain, answered) in [
        ("no reply buffer", vec![readable(REQUEST_AT, length)], 0),
        (
            "a reply buffer of 15 bytes",
            vec![readable(REQUEST_AT, length), writable(REPLY_AT, 15)],
            0,
        ),
        ("half a header", vec![readable(REQUEST_AT, 20), reply], 0),
        (
            "only a header",
            vec![readable(REQUEST_AT, 40), reply],
            OUT_HEADER as u32,
        ),
        (
            "no room for attributes",
            vec![readable(REQUEST_AT, length), writable(REPLY_AT, 16)],
            OUT_HEADER as u32,
        ),
        ("only a reply buffer", vec![reply], 0),
    ] {
        assert_eq!(guest.send_raw(&request, &chain), answered, "{name}");
        if answered != 0 {
            assert_eq!(
                u32_at(&guest.driver.bytes(REPLY_AT, 16), 4).cast_signed(),
                -libc::EINVAL,
                "{name}"
            );
        }
        guest.assert_alive();
    }
}

#[test]
fn every_operation_survives_an_empty_and_a_garbage_body() {
    let mut prng = Prng(0xf05e);
    for opcode in 0..60_u32 {
        let mut guest = Guest::new();
        let random: Vec<u8> = (0..200).map(|_| prng.next() as u8).collect();
        for body in [vec![], vec![0xff; 200], vec![0; 200], random] {
            for nodeid in [ROOT, 0, 12345, u64::MAX] {
                let request = guest.request(opcode, nodeid, &Body(body.clone()));
                let length = request.len() as u32;
                for room in [0, 8, 16, 64, 8192] {
                    guest.send_raw(
                        &request,
                        &[readable(REQUEST_AT, length), writable(REPLY_AT, room)],
                    );
                }
            }
        }
        guest.restart();
        guest.assert_alive();
    }
}

#[test]
fn numbers_out_of_range_are_rejected() {
    let mut guest = Guest::new();
    std::fs::write(guest.path().join("file"), "data").unwrap();
    let file = guest.lookup(ROOT, "file").unwrap().nodeid;
    let handle = u64_at(&guest.call(OPEN, file, Body::default().u32(2).u32(0)).unwrap(), 0);
    let at = |offset: u64, size: u32| {
        Body::default()
            .u64(handle)
            .u64(offset)
            .u32(size)
            .u32(0)
            .u64(0)
            .u64(0)
    };
    for offset in [1 << 63, u64::MAX, u64::MAX - 4096] {
        assert_eq!(
            guest.call(READ, file, at(offset, 10)).unwrap_err(),
            libc::EINVAL,
            "read"
        );
        assert_eq!(
            guest.call(WRITE, file, at(offset, 4).bytes(b"data")).unwrap_err(),
            libc::EINVAL,
            "write"
        );
        let body = Body::default().u64(handle).u64(offset).u64(10).u32(0).u32(0);
        assert_eq!(
            guest.call(FALLOCATE, file, body).unwrap_err(),
            libc::EINVAL,
            "fallocate"
        );
        // FATTR_SIZE
        let body = Body::default().u32(8).u32(0).u64(0).u64(offset).bytes(&[0; 64]);
        assert_eq!(
            guest.call(SETATTR, file, body).unwrap_err(),
            libc::EINVAL,
            "truncate"
        );
    }
    assert!(
        guest
            .call(WRITE, file, at(i64::MAX as u64, 4).bytes(b"data"))
            .is_err(),
        "write at the greatest offset"
    );
    guest.assert_alive();
}

#[test]
fn counts_out_of_range_are_rejected() {
    let mut guest = Guest::new();
    let directory = u64_at(
        &guest.call(OPENDIR, ROOT, Body::default().u32(0).u32(0)).unwrap(),
        0,
    );
    let body = Body::default()
        .u64(directory)
        .u64(0)
        .u32(u32::MAX)
        .u32(0)
        .u64(0)
        .u64(0);
    let listed = guest.call(READDIR, ROOT, body);
    assert!(
        listed.is_ok() || listed == Err(libc::ENOMEM),
        "readdir: {listed:?}"
    );
    let forget = guest.call(BATCH_FORGET, ROOT, Body::default().u32(u32::MAX).u32(0));
    assert_eq!(forget.unwrap_err(), libc::ENOMEM, "batch forget");
    guest.assert_alive();
}

#[test]
fn open_flags_that_create_files_or_descriptors_without_data_are_rejected() {
    let mut guest = Guest::new();
    for flags in [libc::O_CREAT, libc::O_PATH, libc::O_TMPFILE] {
        let body = Body::default().u32((flags | libc::O_RDWR).cast_unsigned()).u32(0);
        assert_eq!(
            guest.call(OPEN, ROOT, body).unwrap_err(),
            libc::EINVAL,
            "open with {flags:#o}"
        );
    }
    guest.assert_alive();
}

#[test]
fn a_name_cannot_leave_its_directory() {
    let mut guest = Guest::new();
    let inside = guest.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(guest.path().join("outside"), "x").unwrap();
    let nodeid = guest.lookup(ROOT, "inside").unwrap().nodeid;
    for name in [
        "..",
        ".",
        "",
        "../outside",
        "/etc/passwd",
        "a/b",
        "../../../../etc",
    ] {
        assert_eq!(
            guest.lookup(nodeid, name).unwrap_err(),
            libc::EINVAL,
            "lookup {name}"
        );
        let unlinked = guest.call(UNLINK, nodeid, Body::default().name(name));
        assert_eq!(unlinked.unwrap_err(), libc::EINVAL, "unlink {name}");
        let made = guest.call(MKDIR, nodeid, Body::default().u32(0o755).u32(0).name(name));
        assert_eq!(made.unwrap_err(), libc::EINVAL, "mkdir {name}");
        let body = Body::default().u64(nodeid).name("new").name(name);
        assert_eq!(
            guest.call(RENAME, ROOT, body).unwrap_err(),
            libc::EINVAL,
            "rename to {name}"
        );
    }
    std::os::unix::fs::symlink("/etc", inside.join("link")).unwrap();
    let link = guest.lookup(nodeid, "link").unwrap();
    assert_eq!(link.mode & libc::S_IFMT, libc::S_IFLNK);
    assert!(guest.lookup(link.nodeid, "passwd").is_err());
    assert!(
        guest
            .call(OPENDIR, link.nodeid, Body::default().u32(0).u32(0))
            .is_err()
    );
    assert!(guest.path().join("outside").exists());
}

#[test]
fn survives_random_operations() {
    if !is_confined("virtio::fs::tests::malformed::survives_random_operations") {
        return;
    }
    let mut guest = Guest::new();
    hammer(&mut guest.driver, &mut guest.device, random_request);
    guest
        .device
        .activate(guest.driver.activation(guest.device.features()))
        .unwrap();
    guest.init();
    guest.assert_alive();
}

/// A request for one of a few inodes and names, so that some succeed. No FALLOCATE, which could fill the
/// disk, and no other size or offset beyond 64 KiB.
fn random_request(prng: &mut Prng) -> Vec<u8> {
    let opcode = match prng.below(54) as u32 {
        FALLOCATE => LOOKUP,
        opcode => opcode,
    };
    let number = |prng: &mut Prng| match prng.below(8) {
        0 => prng.below(0x1_0000),
        _ => prng.below(3),
    };
    let mut body = Body::default().u32(number(prng) as u32).u32(number(prng) as u32);
    for _ in 0..prng.below(8) {
        body = body.u64(number(prng));
    }
    for _ in 0..prng.below(3) {
        body = body.name(["a", "b", "cd", "..", ""][prng.below(5) as usize]);
    }
    let mut request = if prng.below(64) == 0 {
        // Every other request fails until one INIT has succeeded.
        let body = Body::default()
            .u32(7)
            .u32(37)
            .u32(0)
            .u32(u32::MAX)
            .bytes(&[0; 48]);
        request(INIT, 0, prng.next(), 0, &body)
    } else {
        let user = prng.below(2) as u32;
        request(opcode, prng.below(6), prng.next(), user, &body)
    };
    if prng.below(8) == 0 {
        let at = prng.below(IN_HEADER as u64 + 8) as usize;
        request[at] = prng.next() as u8;
    }
    request
}
