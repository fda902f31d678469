//! Each case is a child process: this test binary again, running only [`child`], which confines itself as the
//! environment says and makes one call. Cases that enter the jail need root.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Output};

use nix::sys::eventfd::EventFd;
use rustix::thread::CapabilitySet;

use super::{Confinement, ThreadKind, Violation, calls, enter};

const CASE: &str = "NACRE_JAIL_CASE";
const SHARE: &str = "NACRE_JAIL_SHARE";

/// What a child does once it is confined. Gives false where the result is not what a confined thread gets.
fn act(case: &str, event: &EventFd) -> bool {
    match case {
        "inet socket" => socket(libc::AF_INET),
        "open" => std::fs::File::open("/").is_ok(),
        "exec" => Command::new("/bin/true").status().is_ok(),
        "executable memory" => executable_memory(),
        "thread" => std::thread::Builder::new().spawn(|| ()).is_ok(),
        "other ioctl" => rustix::io::ioctl_fionread(std::io::stderr()).is_ok(),
        "allocate" => vec![1_u8; 1 << 24].iter().all(|byte| *byte == 1),
        "allocate and free" => {
            let blocks: Vec<Vec<u8>> = (0..256).map(|_| vec![1; 64 << 10]).collect();
            blocks.iter().all(|block| block.len() == 64 << 10)
        }
        "event descriptor" => event.read() == Ok(1),
        "panic" => std::panic::catch_unwind(|| std::hint::black_box(Option::<u8>::None).unwrap()).is_err(),
        "read capabilities" => {
            rustix::thread::capability_is_in_bounding_set(CapabilitySet::CHOWN).is_ok()
                && rustix::thread::capability_is_in_ambient_set(CapabilitySet::CHOWN).is_ok()
        }
        "raise a capability" => {
            rustix::thread::configure_capability_in_ambient_set(CapabilitySet::CHOWN, true).is_ok()
        }
        "create a file" => std::fs::write("/made", "x").is_ok(),
        "find / read-only" => is_read_only(Path::new("/")),
        "socket pair" => {
            use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).is_ok()
        }
        other => unreachable!("unknown case {other}"),
    }
}

/// Whether no file of any kind can be created in `directory`. Makes only calls that the file server may make.
fn is_read_only(directory: &Path) -> bool {
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

#[allow(
    unsafe_code,
    reason = "no safe function makes a socket of a family from a number"
)]
fn socket(family: i32) -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::socket(family, libc::SOCK_STREAM, 0) >= 0 }
}

#[allow(unsafe_code, reason = "executable memory, to see it refused")]
fn executable_memory() -> bool {
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing of ours.
    unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) != libc::MAP_FAILED }
}

fn kind(name: &str) -> ThreadKind {
    ThreadKind::ALL
        .into_iter()
        .find(|kind| format!("{kind:?}") == name)
        .unwrap()
}

#[test]
#[ignore = "run as a child process by the other tests"]
fn child() {
    let case = std::env::var(CASE).unwrap();
    let (name, case) = case.split_once(':').unwrap();
    let confinement = Confinement::closed(Violation::Kill).unwrap();
    let event = EventFd::from_value(1).unwrap();
    confinement.confine(kind(name)).unwrap();
    assert!(act(case, &event));
    // The test harness needs more calls than any thread of ours.
    nix::unistd::write(std::io::stderr(), b"went through\n").unwrap();
    exit_now(0);
}

#[allow(unsafe_code, reason = "leaves without the harness's exit handlers")]
fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; no memory is involved.
    unsafe { libc::_exit(code) }
}

fn run(test: &str, case: &str, share: &Path) -> Output {
    command(test, case, share).output().unwrap()
}

fn command(test: &str, case: &str, share: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env(CASE, case)
        // A backtrace reads files; a confined thread can give none.
        .env_remove("RUST_BACKTRACE")
        .env(SHARE, share);
    command
}

fn confined(kind: ThreadKind, case: &str) -> Output {
    run("jail::tests::child", &format!("{kind:?}:{case}"), Path::new("/"))
}

fn killed(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGSYS)
}

#[test]
fn a_forbidden_call_kills_the_process_by_sigsys() {
    for kind in ThreadKind::ALL {
        for case in [
            "inet socket",
            "exec",
            "executable memory",
            "thread",
            "other ioctl",
            "raise a capability",
        ] {
            let output = confined(kind, case);
            assert!(killed(output.status), "{kind:?} {case}: {output:?}");
        }
    }
    for kind in [ThreadKind::Vcpu, ThreadKind::Device, ThreadKind::Control] {
        let output = confined(kind, "open");
        assert!(killed(output.status), "{kind:?} opens a file: {output:?}");
    }
    for kind in [ThreadKind::Vcpu, ThreadKind::FileServer, ThreadKind::Control] {
        let output = confined(kind, "socket pair");
        assert!(killed(output.status), "{kind:?} makes sockets: {output:?}");
    }
}

#[test]
fn what_a_thread_needs_goes_through() {
    let everywhere = ["allocate", "allocate and free", "event descriptor", "panic"];
    let cases = ThreadKind::ALL
        .into_iter()
        .flat_map(|kind| everywhere.map(|case| (kind, case)))
        .chain([
            (ThreadKind::FileServer, "open"),
            (ThreadKind::FileServer, "read capabilities"),
            (ThreadKind::Device, "socket pair"),
        ]);
    for (kind, case) in cases {
        let output = confined(kind, case);
        assert!(output.status.success(), "{kind:?} {case}: {output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("went through"),
            "{kind:?} {case}: {output:?}"
        );
    }
}

#[test]
fn every_call_of_a_table_has_its_reason_and_stands_there_once() {
    for kind in ThreadKind::ALL {
        let mut seen = std::collections::BTreeSet::new();
        for call in calls::of(kind) {
            assert!(!call.why.is_empty(), "{kind:?}: {} has no reason", call.number);
            assert!(
                seen.insert(call.number),
                "{kind:?}: {} stands there twice",
                call.number
            );
        }
    }
}

#[test]
#[ignore = "run as a child process by the other tests"]
fn jailed() {
    let share = std::env::var(SHARE).unwrap();
    // The harness runs tests in a thread of its own, so this one makes a process with one thread.
    let case = std::env::var(CASE).unwrap();
    fork_and_wait(|| {
        let _proc_self_fd = crate::virtio::fs::Prepared::before_jail().unwrap();
        enter((!share.is_empty()).then(|| Path::new(&share))).unwrap();
        look_around(&share);
        let confinement = Confinement::closed(Violation::Kill).unwrap();
        let event = EventFd::from_value(1).unwrap();
        confinement.confine(ThreadKind::FileServer).unwrap();
        assert!(act(&case, &event));
    });
}

/// What a jailed process must find.
fn look_around(share: &str) {
    let mut entries: Vec<_> = std::fs::read_dir("/")
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    entries.sort();
    assert_eq!(
        entries,
        if share.is_empty() {
            vec![]
        } else {
            vec!["in-the-share"]
        }
    );
    assert!(std::fs::metadata("..").is_ok_and(|up| same(&up, &std::fs::metadata("/").unwrap())));
    for fd in 0..64 {
        assert!(!reaches_the_host(fd), "descriptor {fd} leads to the host's files");
    }
    assert!(nix::sys::prctl::get_no_new_privs().unwrap());
    assert!(!nix::sys::prctl::get_dumpable().unwrap());
    assert_eq!(
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE).unwrap(),
        (0, 0)
    );
    let kept = rustix::thread::capabilities(None).unwrap();
    assert!(!kept.permitted.contains(CapabilitySet::SYS_ADMIN));
    assert!(!kept.permitted.contains(CapabilitySet::DAC_READ_SEARCH));
    assert!(kept.effective.contains(CapabilitySet::CHOWN));
    assert!(enter(None).is_err(), "the jail has a way to another one");
}

/// Whether a file of the host can be opened by `..` from the descriptor numbered `fd`, which need not be open.
#[allow(unsafe_code, reason = "tries every number, also those that nobody owns")]
fn reaches_the_host(fd: i32) -> bool {
    let path = c"../../../../../../etc/passwd";
    // SAFETY: the path is a literal; a number that is not open gives EBADF.
    unsafe { libc::openat(fd, path.as_ptr(), libc::O_PATH) >= 0 }
}

fn same(a: &std::fs::Metadata, b: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[allow(
    unsafe_code,
    reason = "a process with one thread, from a harness with several"
)]
fn fork_and_wait(body: impl FnOnce()) {
    // SAFETY: the child runs `body` and leaves by _exit; glibc's allocator works after a fork from a thread.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_ok();
            exit_now(i32::from(!fine));
        }
        nix::unistd::ForkResult::Parent { child } => {
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
        }
    }
}

fn assert_root() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
}

#[test]
fn the_jail_holds_an_empty_tmpfs_or_the_share() {
    assert_root();
    let output = run("jail::tests::jailed", "find / read-only", Path::new(""));
    assert!(output.status.success(), "{output:?}");

    let share = tempfile::tempdir().unwrap();
    std::fs::write(share.path().join("in-the-share"), "").unwrap();
    let output = run("jail::tests::jailed", "create a file", share.path());
    assert!(output.status.success(), "{output:?}");
    use std::os::unix::fs::PermissionsExt as _;
    let made = std::fs::metadata(share.path().join("made")).unwrap();
    assert_eq!(made.permissions().mode() & 0o777, 0o666, "the umask is 0");
}

#[test]
#[ignore = "run as a child process by the other tests"]
fn pivots_and_attaches() {
    use rustix::fs::{CWD, Mode};
    use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
    let volume = std::env::var(SHARE).unwrap();
    fork_and_wait(|| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let volume = open_tree(CWD, &volume, flags).unwrap();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        super::root::pivot(None).unwrap();
        assert!(is_read_only(Path::new("/")));
        // From here on as the shim's helper does it.
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
    use std::os::fd::AsRawFd as _;
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
    assert_root();
    let volume = tempfile::tempdir().unwrap();
    let output = run("jail::tests::pivots_and_attaches", "", volume.path());
    assert!(output.status.success(), "{output:?}");
    assert!(volume.path().join("made").exists());
}

#[test]
fn a_panic_is_reported_even_where_a_backtrace_is_wanted() {
    assert_root();
    let mut command = command("jail::tests::jailed", "panic", Path::new(""));
    let output = command.env("RUST_BACKTRACE", "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("nacre-vmm: panicked at"), "{text}");
}

#[test]
#[ignore = "run as a child process by the other tests"]
fn enters_with_a_directory_open() {
    fork_and_wait(|| {
        let _directory = std::fs::File::open("/proc/self/fd").unwrap();
        let error = enter(None).unwrap_err().to_string();
        assert!(error.contains("a directory of the host is open"), "{error}");
        assert!(
            error.contains("/fd, from where the host's files can be reached"),
            "{error}"
        );
    });
}

#[test]
fn an_open_directory_of_the_host_is_refused() {
    let output = run("jail::tests::enters_with_a_directory_open", "", Path::new(""));
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_missing_share_is_named() {
    assert_root();
    let output = run("jail::tests::jailed", "open", Path::new("/no/such/share"));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && text.contains("/no/such/share: No such file"),
        "{text}"
    );
}

#[test]
fn a_process_with_several_threads_is_refused() {
    // The harness itself has more than one.
    let error = enter(None).unwrap_err().to_string();
    assert!(error.contains("one thread"), "{error}");
}
