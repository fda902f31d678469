//! How a confined VMM that crashes ends.

use std::fs::File;
use std::sync::OnceLock;

use super::*;

#[allow(unsafe_code, reason = "no safe code reads from an invalid address")]
pub fn read_address_8() -> bool {
    let address = std::ptr::without_provenance::<u8>(std::hint::black_box(8));
    // SAFETY: none: the read faults, which is what the caller wants to see.
    unsafe { address.read_volatile() == 0 }
}

/// Reads from a mapping of an empty file, as of a file that was truncated or whose disk can't be read.
#[allow(unsafe_code, reason = "mmap has no safe form")]
pub fn touch_beyond_a_file() -> bool {
    let [read_only, shared] = [libc::PROT_READ, libc::MAP_SHARED];
    let file = EMPTY_FILE.get().unwrap().as_raw_fd();
    // SAFETY: a new mapping at an address that the kernel chooses overlaps no memory of ours.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, read_only, shared, file, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    // SAFETY: none: the read faults, which is what the caller wants to see.
    unsafe { page.cast::<u8>().read_volatile() == 0 }
}

/// The file that [`touch_beyond_a_file`] maps, opened before the jail is entered.
static EMPTY_FILE: OnceLock<File> = OnceLock::new();

#[test]
#[ignore = "other tests run it as a child process"]
fn crashing_child() {
    let case = std::env::var(CASE).unwrap();
    let (name, case) = case.split_once(':').unwrap();
    EMPTY_FILE.set(tempfile::tempfile().unwrap()).unwrap();
    fork_and_wait(|| {
        // As the shim starts a VMM: PID 1 of its PID namespace.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID).unwrap();
        let status = fork_and_reap(|| {
            assert_eq!(nix::unistd::getpid().as_raw(), 1);
            enter(None).unwrap();
            let confinement = Confinement::closed(Violation::Kill).unwrap();
            let event = EventFd::from_value(1).unwrap();
            confinement.confine(profile_by_name(name)).unwrap();
            perform(case, &event);
        });
        println!("{status:?}");
    });
}

#[test]
fn a_crash_of_a_confined_pid_1_has_its_own_signal_or_exit_code() {
    if !is_root() {
        return;
    }
    for profile in calls::ALL {
        let name = profile.name;
        for (case, end) in [
            ("read address 8", "SIGSEGV"),
            ("touch a page beyond the end of a file", "SIGBUS"),
            ("abort", ", 134)"),
            ("exec", "SIGSYS"),
        ] {
            let test = "jail::tests::crashes::crashing_child";
            let output = run(test, &format!("{name}:{case}"), Path::new(""));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains(end), "{name} {case}: {output:?}");
        }
    }
}
