//! The root file system of the jail.

use super::*;

/// Whether no file of any kind can be created in `directory`. Makes only calls that the file server may make.
pub fn is_read_only(directory: &Path) -> bool {
    use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat, symlinkat};
    let path = directory.join("made");
    let mode = Mode::from(0o600);
    let created = [
        openat(
            CWD,
            &path,
            OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC,
            mode,
        )
        .map(drop),
        mkdirat(CWD, &path, mode),
        symlinkat("/etc", CWD, &path),
        mknodat(CWD, &path, FileType::Fifo, mode, 0),
    ];
    created == [Err(rustix::io::Errno::ROFS); 4]
}

#[test]
fn the_root_is_an_empty_read_only_tmpfs_or_the_share() {
    if !is_root() {
        return;
    }
    let output = run("jail::tests::jailed_child", "fail to create files", Path::new(""));
    assert!(output.status.success(), "{output:?}");

    let share = tempfile::tempdir().unwrap();
    std::fs::write(share.path().join("in-the-share"), "").unwrap();
    let output = run("jail::tests::jailed_child", "create a file", share.path());
    assert!(output.status.success(), "{output:?}");
    use std::os::unix::fs::PermissionsExt as _;
    let made = std::fs::metadata(share.path().join("made")).unwrap();
    assert_eq!(made.permissions().mode() & 0o777, 0o666, "the umask is 0");
}

#[test]
#[ignore = "other tests run it as a child process"]
fn pivoting_child() {
    use rustix::fs::{CWD, Mode};
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    let volume = std::env::var(DIRECTORY).unwrap();
    fork_and_wait(|| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let volume = open_tree(CWD, &volume, flags).unwrap();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        crate::jail::root::pivot(None).unwrap();
        assert!(is_read_only(Path::new("/")));
        // As the shim's helper attaches a volume.
        let writable = open_tree(CWD, "/", flags).unwrap();
        clear_read_only(&writable);
        rustix::fs::mkdirat(&writable, "volume", Mode::from(0o755)).unwrap();
        move_mount(
            &volume,
            "",
            CWD,
            "/volume",
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .unwrap();
        assert!(is_read_only(Path::new("/")));
        std::fs::write("/volume/made", "x").unwrap();
    });
}

#[allow(unsafe_code, reason = "mount_setattr has no safe form")]
fn clear_read_only(mount: &std::os::fd::OwnedFd) {
    let attributes = libc::mount_attr {
        attr_set: 0,
        attr_clr: libc::MOUNT_ATTR_RDONLY,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a literal, the attributes are initialised and their size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn the_root_is_read_only_and_a_volume_attached_below_it_is_not() {
    if !is_root() {
        return;
    }
    let volume = tempfile::tempdir().unwrap();
    let output = run("jail::tests::root::pivoting_child", "", volume.path());
    assert!(output.status.success(), "{output:?}");
    assert!(volume.path().join("made").exists());
}
