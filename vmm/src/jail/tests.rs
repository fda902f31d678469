//! Each case runs in a child process: this test binary again with one ignored test, such as
//! [`confined_child`], which reads from its environment what to do. Tests that enter the jail need root.

mod crashes;
mod root;
mod used_calls;

use std::os::fd::AsRawFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Output};

use nix::sys::eventfd::EventFd;
use rustix::thread::CapabilitySet;

use super::calls::{self, Profile, balloon, blk, fs, mem, net, rng, vsock};
use super::{Confinement, Violation, enter};

/// Environment of a child process: the case, see [`perform`].
const CASE: &str = "NACRE_JAIL_CASE";
/// Environment of a child process: a directory, or empty.
const DIRECTORY: &str = "NACRE_JAIL_DIRECTORY";

/// Performs `case` in a confined thread; true if the result is as expected there.
fn perform(case: &str, event: &EventFd) -> bool {
    match case {
        "inet socket" => socket(libc::AF_INET),
        "open" => std::fs::File::open("/").is_ok(),
        "exec" => Command::new("/bin/true").status().is_ok(),
        "executable memory" => executable_memory(),
        "thread" => std::thread::Builder::new().spawn(|| ()).is_ok(),
        "process" => process(),
        "other ioctl" => rustix::io::ioctl_fionread(std::io::stderr()).is_ok(),
        "allocate" => vec![1_u8; 1 << 24].iter().all(|byte| *byte == 1),
        "allocate and free" => {
            let blocks: Vec<Vec<u8>> = (0..256).map(|_| vec![1; 64 << 10]).collect();
            blocks.iter().all(|block| block.len() == 64 << 10)
        }
        "read an eventfd" => event.read() == Ok(1),
        "panic" => std::panic::catch_unwind(|| std::hint::black_box(Option::<u8>::None).unwrap()).is_err(),
        "read address 8" => crashes::read_address_8(),
        "touch a page beyond the end of a file" => crashes::touch_beyond_a_file(),
        "abort" => std::process::abort(),
        "read capabilities" => {
            rustix::thread::capability_is_in_bounding_set(CapabilitySet::CHOWN).is_ok()
                && rustix::thread::capability_is_in_ambient_set(CapabilitySet::CHOWN).is_ok()
        }
        "another signal" => nix::sys::signal::raise(nix::sys::signal::Signal::SIGWINCH).is_ok(),
        "raise a capability" => {
            rustix::thread::configure_capability_in_ambient_set(CapabilitySet::CHOWN, true).is_ok()
        }
        "status of an open file" => file_status(),
        "create a file" => std::fs::write("/made", "x").is_ok(),
        "fail to create files" => root::is_read_only(Path::new("/")),
        "socket pair" => {
            use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).is_ok()
        }
        // The listener is no socket: what matters is whether the call is allowed.
        "accept" => {
            let accepted = rustix::net::accept_with(event, rustix::net::SocketFlags::CLOEXEC);
            accepted.err() == Some(rustix::io::Errno::NOTSOCK)
        }
        "send an interrupt" => send_interrupt(event) == Some(libc::ENOTTY),
        other => unreachable!("unknown case {other}"),
    }
}

/// The errno of KVM_SIGNAL_MSI on a descriptor that is not a VM.
#[allow(unsafe_code, reason = "ioctl has no safe form")]
fn send_interrupt(event: &EventFd) -> Option<i32> {
    // SAFETY: an eventfd knows no ioctl, so the kernel does not use the argument.
    let result = unsafe { libc::ioctl(event.as_raw_fd(), calls::KVM_SIGNAL_MSI, 0) };
    (result < 0).then(std::io::Error::last_os_error)?.raw_os_error()
}

/// Whether a process can be created by clone(2), whose flags are those of fork(2).
#[allow(unsafe_code, reason = "the C library makes another call")]
fn process() -> bool {
    let exit_signal = libc::c_long::from(libc::SIGCHLD);
    // SAFETY: the child, which has a copy of this stack, exits at once.
    let child = unsafe { libc::syscall(libc::SYS_clone, exit_signal, 0, 0, 0, 0) };
    if child == 0 {
        exit_now(0);
    }
    child > 0
}

#[allow(unsafe_code, reason = "no safe function takes the address family as a number")]
fn socket(family: i32) -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::socket(family, libc::SOCK_STREAM, 0) >= 0 }
}

/// fstat(2), by each system call that some version of glibc makes for it.
#[allow(unsafe_code, reason = "the C library makes only one of these calls")]
fn file_status() -> bool {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel writes a `struct stat`, which has this layout on x86-64, to a buffer of its size.
    let fstat = unsafe { libc::syscall(libc::SYS_fstat, 2, status.as_mut_ptr()) };
    let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: as above; the path is a literal.
    let fstatat = unsafe { libc::syscall(libc::SYS_newfstatat, 2, path, status.as_mut_ptr(), flags) };
    (fstat, fstatat) == (0, 0)
}

#[allow(unsafe_code, reason = "mmap has no safe form")]
fn executable_memory() -> bool {
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping at an address that the kernel chooses overlaps no memory of ours.
    unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) != libc::MAP_FAILED }
}

fn profile_by_name(name: &str) -> &'static Profile {
    calls::ALL.iter().find(|profile| profile.name == name).unwrap()
}

#[test]
#[ignore = "other tests run it as a child process"]
fn confined_child() {
    let case = std::env::var(CASE).unwrap();
    let (name, case) = case.split_once(':').unwrap();
    let confinement = Confinement::closed(Violation::Kill).unwrap();
    let event = EventFd::from_value(1).unwrap();
    confinement.confine(profile_by_name(name)).unwrap();
    assert!(perform(case, &event));
    // The test harness needs more system calls than any thread of the VMM.
    nix::unistd::write(std::io::stderr(), b"passed\n").unwrap();
    exit_now(0);
}

#[allow(unsafe_code, reason = "exits without running exit handlers")]
fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; no memory is involved.
    unsafe { libc::_exit(code) }
}

/// Runs the ignored `test` alone in a child process.
fn run(test: &str, case: &str, directory: &Path) -> Output {
    command(test, case, directory).output().unwrap()
}

fn command(test: &str, case: &str, directory: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env(CASE, case)
        // Printing a backtrace reads files, which a confined thread may not do.
        .env_remove("RUST_BACKTRACE")
        .env(DIRECTORY, directory);
    command
}

fn run_confined(profile: &Profile, case: &str) -> Output {
    run(
        "jail::tests::confined_child",
        &format!("{}:{case}", profile.name),
        Path::new("/"),
    )
}

fn killed_by_sigsys(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGSYS)
}

/// Calls that no thread may make.
const FORBIDDEN: [&str; 7] = [
    "inet socket",
    "exec",
    "executable memory",
    "process",
    "other ioctl",
    "raise a capability",
    "another signal",
];

/// Calls that only some threads may make, with their profiles.
fn restricted() -> [(&'static str, Vec<&'static Profile>); 7] {
    // The only thread that serves no device.
    let interrupting = calls::ALL.iter().copied();
    let interrupting = interrupting.filter(|profile| profile.name != fs::SYNC_PROFILE.name);
    [
        ("send an interrupt", interrupting.collect()),
        ("thread", vec![&calls::CONTROL]),
        ("open", vec![&fs::PROFILE, &fs::SYNC_PROFILE]),
        ("status of an open file", vec![&fs::PROFILE, &calls::SAVER]),
        ("read capabilities", vec![&fs::PROFILE]),
        ("socket pair", vec![&vsock::PROFILE, &vsock::STANDALONE]),
        ("accept", vec![&vsock::STANDALONE]),
    ]
}

#[test]
fn a_forbidden_call_kills_the_process_by_sigsys() {
    for profile in calls::ALL {
        let restricted = restricted();
        let forbidden_here = restricted
            .iter()
            .filter(|(_, allowed)| !allowed.iter().any(|other| other.name == profile.name));
        for case in FORBIDDEN.into_iter().chain(forbidden_here.map(|(case, _)| *case)) {
            let output = run_confined(profile, case);
            assert!(
                killed_by_sigsys(output.status),
                "{} {case}: {output:?}",
                profile.name
            );
        }
    }
}

#[test]
fn allowed_calls_pass() {
    let everywhere = ["allocate", "allocate and free", "read an eventfd", "panic"];
    let everywhere = calls::ALL
        .iter()
        .flat_map(|profile| everywhere.map(|case| (*profile, case)));
    let restricted = restricted()
        .into_iter()
        .flat_map(|(case, allowed)| allowed.into_iter().map(move |profile| (profile, case)));
    for (profile, case) in everywhere.chain(restricted) {
        let output = run_confined(profile, case);
        let name = profile.name;
        assert!(output.status.success(), "{name} {case}: {output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("passed"),
            "{name} {case}: {output:?}"
        );
    }
}

#[test]
#[ignore = "other tests run it as a child process"]
fn child_that_adds_a_device() {
    let add = crate::virtio::net::tests::prepared();
    let confinement = Confinement::closed(Violation::Kill).unwrap();
    confinement.confine(&calls::CONTROL).unwrap();
    assert!(add(confinement));
    nix::unistd::write(std::io::stderr(), b"passed\n").unwrap();
    exit_now(0);
}

#[test]
fn the_confined_main_thread_can_add_a_network_device() {
    let output = run("jail::tests::child_that_adds_a_device", "", Path::new("/"));
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("passed"));
}

#[test]
fn every_allowed_call_has_a_reason_and_is_listed_once() {
    for profile in calls::ALL {
        let mut seen = std::collections::BTreeSet::new();
        for call in profile.calls() {
            let name = profile.name;
            assert!(!call.reason.is_empty(), "{name}: {} has no reason", call.number);
            assert!(
                seen.insert(call.number),
                "{name}: {} is listed twice",
                call.number
            );
        }
    }
}

/// The table of profiles in docs/jail.md has how many calls each allows, and how many of these by their arguments.
#[test]
fn the_documented_numbers_of_calls_are_those_of_the_tables() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/jail.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mut missing = Vec::new();
    for profile in calls::ALL {
        let allowed = |call: &&calls::Call| !matches!(call.argument, calls::Argument::Unsupported);
        let by_arguments = |call: &&calls::Call| !matches!(call.argument, calls::Argument::Any);
        let number = profile.calls().filter(allowed).count();
        let conditional = profile.calls().filter(allowed).filter(by_arguments).count();
        let row = format!("| `{}` | {number}, {conditional} | ", profile.name);
        if !page.contains(&row) {
            missing.push(row);
        }
    }
    assert!(missing.is_empty(), "docs/jail.md has no rows {missing:#?}");
}

#[test]
#[ignore = "other tests run it as a child process"]
fn jailed_child() {
    let share = std::env::var(DIRECTORY).unwrap();
    let case = std::env::var(CASE).unwrap();
    fork_and_wait(|| {
        let _proc_self_fd = crate::virtio::fs::Prepared::before_jail().unwrap();
        enter((!share.is_empty()).then(|| Path::new(&share))).unwrap();
        assert_jailed(&share);
        let confinement = Confinement::closed(Violation::Kill).unwrap();
        let event = EventFd::from_value(1).unwrap();
        confinement.confine(&fs::PROFILE).unwrap();
        assert!(perform(&case, &event));
    });
}

/// Asserts what must hold after [`enter`].
fn assert_jailed(share: &str) {
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
        assert!(
            !leads_to_the_host(fd),
            "the host's files can be reached from {fd}"
        );
    }
    assert!(nix::sys::prctl::get_no_new_privs().unwrap());
    assert!(!nix::sys::prctl::get_dumpable().unwrap());
    assert_eq!(
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE).unwrap(),
        (1, 1),
        "the kernel would pipe a core to the program in core_pattern with any other limit"
    );
    let kept = rustix::thread::capabilities(None).unwrap();
    assert!(!kept.permitted.contains(CapabilitySet::SYS_ADMIN));
    assert!(!kept.permitted.contains(CapabilitySet::DAC_READ_SEARCH));
    assert!(kept.effective.contains(CapabilitySet::CHOWN));
    assert!(enter(None).is_err(), "a jailed process can enter another jail");
}

/// Whether a file of the host can be opened by `..` from descriptor `fd`, which need not be open.
#[allow(unsafe_code, reason = "borrows a descriptor by its number")]
fn leads_to_the_host(fd: i32) -> bool {
    let path = c"../../../../../../etc/passwd";
    // SAFETY: the path is a literal; a number that is not open gives EBADF.
    unsafe { libc::openat(fd, path.as_ptr(), libc::O_PATH) >= 0 }
}

fn same(a: &std::fs::Metadata, b: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Runs `body` in a forked process, which has one thread, as the jail requires; the test harness has several.
fn fork_and_wait(body: impl FnOnce()) {
    let status = fork_and_reap(body);
    assert!(
        matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)),
        "{status:?}"
    );
}

#[allow(unsafe_code, reason = "fork has no safe form")]
fn fork_and_reap(body: impl FnOnce()) -> nix::sys::wait::WaitStatus {
    // SAFETY: the child runs `body` and exits by _exit; glibc's allocator works after a fork from any thread.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_ok();
            exit_now(i32::from(!passed));
        }
        nix::unistd::ForkResult::Parent { child } => nix::sys::wait::waitpid(child, None).unwrap(),
    }
}

/// Whether the test can run; prints that it is skipped if not.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: not root");
    }
    root
}

#[test]
fn a_confined_thread_reports_a_panic_despite_rust_backtrace() {
    if !is_root() {
        return;
    }
    let mut command = command("jail::tests::jailed_child", "panic", Path::new(""));
    let output = command.env("RUST_BACKTRACE", "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("nacre-vmm: panicked at"), "{text}");
}

#[test]
#[ignore = "other tests run it as a child process"]
fn child_with_an_open_directory() {
    fork_and_wait(|| {
        let _directory = std::fs::File::open("/proc/self/fd").unwrap();
        let error = enter(None).unwrap_err().to_string();
        assert!(error.contains("no directory of the host may be open"), "{error}");
        assert!(
            error.contains("/fd, and the host's files can be reached from it"),
            "{error}"
        );
    });
}

#[test]
fn an_open_directory_of_the_host_is_refused() {
    let output = run("jail::tests::child_with_an_open_directory", "", Path::new(""));
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn an_error_names_the_missing_share() {
    if !is_root() {
        return;
    }
    let output = run("jail::tests::jailed_child", "open", Path::new("/no/such/share"));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && text.contains("/no/such/share: No such file"),
        "{text}"
    );
}

#[test]
fn a_process_with_several_threads_is_refused() {
    // The test harness has several threads.
    let error = enter(None).unwrap_err().to_string();
    assert!(error.contains("one thread"), "{error}");
}
