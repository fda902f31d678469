//! Sizes, modes and extended attributes of files, and requests between two files.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;

#[test]
fn a_file_can_be_extended_without_data() {
    let mut guest = Guest::new();
    let (file, handle) = guest.create(ROOT, "file", 0o644).unwrap();
    // FATTR_SIZE | FATTR_FH
    let body = Body::default()
        .u32(1 << 3 | 1 << 6)
        .u32(0)
        .u64(handle)
        .u64(3 << 30)
        .bytes(&[0; 64]);
    guest.call(SETATTR, file.nodeid, body).unwrap();
    let body = Body::default()
        .u64(handle)
        .u64(0)
        .u32(libc::SEEK_DATA.cast_unsigned())
        .u32(0);
    assert_eq!(
        guest.call(LSEEK, file.nodeid, body).unwrap_err(),
        libc::ENXIO,
        "the file has no data"
    );
    let metadata = fs::metadata(guest.path().join("file")).unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (3 << 30, 0));
}

#[test]
fn extended_attributes_are_stored() {
    let mut guest = Guest::new();
    let (file, _) = guest.create(ROOT, "file", 0o644).unwrap();
    // Every file system stores this attribute, and the jail keeps the capability for it:
    // CAP_NET_BIND_SERVICE, effective.
    let (name, value) = (
        "security.capability",
        b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    );
    let body = Body::default()
        .u32(20)
        .u32(0)
        .u32(0)
        .u32(0)
        .name(name)
        .bytes(value);
    guest.call(SETXATTR, file.nodeid, body).unwrap();
    let body = |size: u32, name: &str| Body::default().u32(size).u32(0).name(name);
    assert_eq!(guest.call(GETXATTR, file.nodeid, body(100, name)).unwrap(), value);
    assert_eq!(
        guest.call(GETXATTR, file.nodeid, body(1 << 20, name)).unwrap(),
        value
    );
    assert_eq!(
        u32_at(&guest.call(GETXATTR, file.nodeid, body(0, name)).unwrap(), 0),
        20
    );
    assert_eq!(
        guest
            .call(GETXATTR, file.nodeid, body(u32::MAX, name))
            .unwrap_err(),
        libc::ENOMEM
    );
    let list = guest
        .call(LISTXATTR, file.nodeid, Body::default().u32(1 << 20).u32(0))
        .unwrap();
    assert_eq!(list, b"security.capability\0");
    guest
        .call(REMOVEXATTR, file.nodeid, Body::default().name(name))
        .unwrap();
    let none = guest
        .call(GETXATTR, file.nodeid, body(100, "system.posix_acl_access"))
        .unwrap_err();
    assert_eq!(none, libc::ENODATA);
}

#[test]
fn trusted_attributes_are_the_users_on_the_host() {
    let mut guest = Guest::new();
    let (file, _) = guest.create(ROOT, "file", 0o644).unwrap();
    let path = guest.path().join("file");
    let on_host = |name: &str| rustix::fs::getxattr(&path, name, &mut [0_u8; 16]);
    let set = |name: &str| Body::default().u32(1).u32(0).u32(0).u32(0).name(name).bytes(b"y");
    if let Err(error) = guest.call(SETXATTR, file.nodeid, set("trusted.overlay.opaque")) {
        // tmpfs has attributes of users since Linux 6.6.
        assert_eq!(error, libc::EOPNOTSUPP);
        return;
    }
    assert_eq!(on_host("user.nacre.trusted.overlay.opaque"), Ok(1));
    let size = Body::default().u32(100).u32(0);
    let name = |name: &str| size.clone().name(name);
    let value = guest.call(GETXATTR, file.nodeid, name("trusted.overlay.opaque"));
    assert_eq!(value.unwrap(), b"y");
    let list = guest.call(LISTXATTR, file.nodeid, size.clone()).unwrap();
    assert_eq!(list, b"trusted.overlay.opaque\0");
    // An unprivileged process of the guest may set attributes of users, but not forge these.
    for forged in ["user.nacre.trusted.overlay.redirect", "user.nacre.x"] {
        assert_eq!(guest.call(SETXATTR, file.nodeid, set(forged)), Err(libc::EPERM));
        assert_eq!(
            guest.call(GETXATTR, file.nodeid, name(forged)),
            Err(libc::ENODATA)
        );
    }
    let remove = Body::default().name("trusted.overlay.opaque");
    guest.call(REMOVEXATTR, file.nodeid, remove).unwrap();
    assert_eq!(
        on_host("user.nacre.trusted.overlay.opaque"),
        Err(rustix::io::Errno::NODATA)
    );
}

#[test]
fn extended_attributes_of_a_link_are_its_own() {
    let mut guest = Guest::new();
    guest.create(ROOT, "file", 0o644).unwrap();
    let link = Body::default().name("link").name("file");
    guest.call(SYMLINK, ROOT, link).unwrap();
    let link = guest.lookup(ROOT, "link").unwrap().nodeid;
    let (name, size) = ("user.name", Body::default().u32(100).u32(0));
    let body = Body::default().u32(1).u32(0).u32(0).u32(0).name(name).bytes(b"x");
    // A link has no attributes of users.
    assert_eq!(guest.call(SETXATTR, link, body).unwrap_err(), libc::EPERM);
    let got = guest.call(GETXATTR, link, size.clone().name(name));
    assert!(matches!(got, Err(libc::ENODATA | libc::EPERM)), "{got:?}");
    let removed = guest.call(REMOVEXATTR, link, Body::default().name(name));
    assert_eq!(removed.unwrap_err(), libc::EPERM);
    assert_eq!(guest.call(LISTXATTR, link, size).unwrap(), b"");
}

#[test]
fn an_open_file_is_changed_by_its_handle() {
    let mut guest = Guest::new();
    let (file, handle) = guest.create(ROOT, "file", 0o644).unwrap();
    // FATTR_MODE | FATTR_FH
    let body = Body::default().u32(1 << 0 | 1 << 6).u32(0).u64(handle);
    let body = body.bytes(&[0; 52]).u32(0o600).bytes(&[0; 16]);
    guest.call(SETATTR, file.nodeid, body).unwrap();
    let body = Body::default().u64(handle).u64(0).u64(5000).u32(0).u32(0);
    guest.call(FALLOCATE, file.nodeid, body).unwrap();
    // FUSE_FSYNC_FDATASYNC
    let body = Body::default().u64(handle).u32(1).u32(0);
    guest.call(FSYNC, file.nodeid, body).unwrap();
    let on_host = fs::metadata(guest.path().join("file")).unwrap();
    assert_eq!((on_host.mode() & 0o777, on_host.len()), (0o600, 5000));
}

#[test]
fn data_is_copied_between_files() {
    let mut guest = Guest::new();
    let (from, from_handle) = guest.create(ROOT, "from", 0o644).unwrap();
    let (to, to_handle) = guest.create(ROOT, "to", 0o644).unwrap();
    guest.write(from.nodeid, from_handle, 0, b"0123456789").unwrap();
    let body = Body::default().u64(from_handle).u64(2).u64(to.nodeid);
    let body = body.u64(to_handle).u64(0).u64(5).u64(0);
    let reply = guest.call(COPY_FILE_RANGE, from.nodeid, body).unwrap();
    assert_eq!(u32_at(&reply, 0), 5);
    assert_eq!(fs::read(guest.path().join("to")).unwrap(), b"23456");
}

#[test]
fn a_supplementary_group_may_create_files() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let mut guest = Guest::new();
    // FUSE_CREATE_SUPP_GROUP, since Linux 6.3: older guests can't name the group.
    guest.init_with(1 << 2);
    fs::set_permissions(guest.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let shared = guest.path().join("shared");
    fs::create_dir(&shared).unwrap();
    std::os::unix::fs::chown(&shared, Some(0), Some(2000)).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o775)).unwrap();
    let directory = guest.lookup(ROOT, "shared").unwrap().nodeid;
    guest.user = 1000;
    let body = |name| Body::default().u32(0o755).u32(0o022).name(name);
    assert_eq!(
        guest.call(MKDIR, directory, body("without")).unwrap_err(),
        libc::EACCES
    );
    // FUSE_EXT_GROUPS: size and type of the extension, number of groups, the group.
    let extension = body("with").u32(16).u32(32).u32(1).u32(2000);
    guest.call(MKDIR, directory, extension).unwrap();
    assert!(shared.join("with").exists());
}

#[test]
fn set_user_id_is_cleared_also_after_a_user_has_created_a_file() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let mut guest = Guest::new();
    fs::set_permissions(guest.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = guest.path().join("file");
    let (file, handle) = guest.create(ROOT, "file", 0o644).unwrap();
    guest.write(file.nodeid, handle, 0, b"content").unwrap();
    let mode_after = |guest: &mut Guest, opcode, body: &Body| {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        guest.call(opcode, file.nodeid, body.clone()).unwrap();
        fs::metadata(&path).unwrap().mode() & 0o7777
    };
    let write = |flags| {
        let body = Body::default().u64(handle).u64(0).u32(1).u32(flags);
        body.u64(0).u32(0).u32(0).bytes(b"x")
    };
    // FATTR_SIZE, FATTR_FH and FATTR_KILL_SUIDGID.
    let truncate = Body::default().u32(1 << 3 | 1 << 6 | 1 << 11).u32(0).u64(handle);
    let copy = Body::default().u64(handle).u64(0).u64(file.nodeid).u64(handle);
    let open_flags = (libc::O_TRUNC | libc::O_WRONLY).cast_unsigned();
    let requests = [
        // FUSE_WRITE_KILL_SUIDGID.
        (WRITE, write(1 << 2)),
        (COPY_FILE_RANGE, copy.u64(4).u64(1).u64(0)),
        (SETATTR, truncate.u64(7).bytes(&[0; 64])),
        (
            FALLOCATE,
            Body::default().u64(handle).u64(0).u64(5000).u32(0).u32(0),
        ),
        // FUSE_OPEN_KILL_SUIDGID.
        (OPEN, Body::default().u32(open_flags).u32(1)),
    ];
    guest.user = 1000;
    for round in 0..2 {
        for (opcode, body) in &requests {
            let mode = mode_after(&mut guest, *opcode, body);
            assert_eq!(mode, 0o777, "round {round}, request {opcode}");
        }
        guest.create(ROOT, &format!("file-{round}"), 0o644).unwrap();
        guest.mkdir(ROOT, &format!("directory-{round}"));
    }
    guest.user = 0;
    for (opcode, body) in [(WRITE, &write(0)), (FALLOCATE, &requests[3].1)] {
        assert_eq!(
            mode_after(&mut guest, opcode, body),
            0o6777,
            "request {opcode} of root"
        );
    }
    // FATTR_UID, FATTR_GID and FATTR_KILL_SUIDGID. Without execution by the group the bit has another meaning.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6644)).unwrap();
    let chown = Body::default().u32(1 << 1 | 1 << 2 | 1 << 11).u32(0);
    let chown = chown.bytes(&[0; 68]).u32(5).u32(6).u32(0);
    guest.call(SETATTR, file.nodeid, chown).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.mode() & 0o7777, after.uid(), after.gid()), (0o2644, 5, 6));
}
