//! `nacre-vmm --control-fd` as the shim starts it, with guests of a few instructions: every answer that the shim can
//! get. Needs root for the jail, and /dev/kvm for those that run a guest; says so where it skips.
#![allow(missing_docs, reason = "a test")]

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};

use nacre_protocol::BUILD_ID;
use nacre_protocol::console::RING_BYTES;
use nacre_protocol::control::{Channel, Configure, Error, FromVmm, Outcome, ToVmm};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

/// Where the test's kernels are loaded.
const LOAD: u32 = 0x10_0000;

struct Vmm {
    child: Child,
    control: Channel,
}

impl Vmm {
    /// None, said, where this process may not make a jail.
    fn start() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return None;
        }
        // The VMM's end must survive exec: no SOCK_CLOEXEC. Ours then leaks into children of tests that run beside
        // this one, so it is closed on exec by hand.
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
        nix::fcntl::fcntl(
            &ours,
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
        )
        .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_nacre-vmm"))
            .args(["--control-fd", &theirs.as_raw_fd().to_string()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self {
            child,
            control: Channel::new(ours),
        })
    }

    fn configure(&self, configure: Configure, kernel: &File) {
        let console = tempfile::tempfile().unwrap();
        console.set_len(RING_BYTES).unwrap();
        let mut initrd = tempfile::tempfile().unwrap();
        initrd.write_all(&[7; 5000]).unwrap();
        let kvm: OwnedFd = kvm().unwrap_or_else(|| File::open("/dev/null").unwrap()).into();
        let fds: [RawFd; 4] = [
            kvm.as_raw_fd(),
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            console.as_raw_fd(),
        ];
        self.control.send(&ToVmm::Configure(configure), &fds).unwrap();
    }

    /// All messages to the end.
    fn messages(&self) -> Vec<FromVmm> {
        let mut messages = Vec::new();
        loop {
            match self.control.receive::<FromVmm>() {
                Ok((message, _)) => messages.push(message),
                Err(Error::Closed | Error::Socket(nix::Error::ECONNRESET)) => return messages,
                Err(error) => panic!("{error} after {messages:?}"),
            }
        }
    }

    fn end(mut self) -> ExitStatus {
        drop(self.control);
        self.child.wait().unwrap()
    }
}

fn kvm() -> Option<File> {
    File::options().read(true).write(true).open("/dev/kvm").ok()
}

fn configure() -> Configure {
    Configure {
        build_id: BUILD_ID.to_owned(),
        pod: "test".to_owned(),
        memory_mib: 64,
        vcpus: 1,
        extra_cmdline: String::new(),
        console_to_stderr: false,
    }
}

/// A vmlinux with `code` as its PVH entry point.
fn kernel(code: &[u8]) -> File {
    let mut header = Vec::new();
    header.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    header.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [u64::from(LOAD), 64, 0] {
        header.extend_from_slice(&word.to_le_bytes());
    }
    header.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let segment = |kind: u32, offset: u64, bytes: u64| {
        let mut segment = [kind.to_le_bytes(), 5u32.to_le_bytes()].concat();
        for word in [offset, u64::from(LOAD), u64::from(LOAD), bytes, bytes, 1] {
            segment.extend_from_slice(&word.to_le_bytes());
        }
        segment
    };
    let mut note = Vec::new();
    for word in [4, 4, 18u32] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&LOAD.to_le_bytes());
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&header, 0).unwrap();
    file.write_all_at(&segment(1, 4096, code.len() as u64), 64)
        .unwrap();
    file.write_all_at(&segment(4, 1024, note.len() as u64), 64 + 56)
        .unwrap();
    file.write_all_at(&note, 1024).unwrap();
    file.write_all_at(code, 4096).unwrap();
    file
}

/// `mov al, VALUE; mov dx, PORT; out dx, al; hlt`.
fn write_port(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0xb0, value, 0x66, 0xba, low, high, 0xee, 0xf4]
}

/// The outcome of a guest of `code`, after all that comes before it.
fn outcome(code: &[u8]) -> Option<Outcome> {
    if kvm().is_none() {
        println!("skipped: no /dev/kvm");
        return None;
    }
    let vmm = Vmm::start()?;
    vmm.configure(configure(), &kernel(code));
    let messages = vmm.messages();
    let running = messages.iter().position(|message| *message == FromVmm::Running);
    let running = running.unwrap_or_else(|| panic!("never ran: {messages:?}"));
    let mut last = 0;
    for message in &messages[..running] {
        let FromVmm::Step(step) = message else {
            panic!("{message:?} before Running")
        };
        assert!(step.done_ns >= last, "{messages:?}");
        last = step.done_ns;
    }
    let [FromVmm::Ended(outcome)] = &messages[running + 1..] else {
        panic!("{messages:?}")
    };
    assert!(vmm.end().success());
    Some(outcome.clone())
}

fn failure(configure: Configure, kernel: &File) -> Option<(String, String, Option<String>)> {
    let vmm = Vmm::start()?;
    vmm.configure(configure, kernel);
    let mut messages = vmm.messages();
    messages.retain(|message| !matches!(message, FromVmm::Step(_)));
    let [FromVmm::Failed { step, error, hint }] = &messages[..] else {
        panic!("{messages:?}")
    };
    assert_eq!(vmm.end().code(), Some(1));
    Some((step.clone(), error.clone(), hint.clone()))
}

#[test]
fn power_off_reset_panic_and_triple_fault_are_told_apart() {
    let off = outcome(&write_port(0x600, 5 << 2 | 1 << 5));
    if off.is_none() {
        return;
    }
    assert_eq!(off, Some(Outcome::PowerOff));
    assert!(matches!(
        outcome(&write_port(0x602, 0x42)),
        Some(Outcome::Reset { .. })
    ));
    assert_eq!(outcome(&write_port(0x505, 1)), Some(Outcome::Panic));
}

#[test]
fn a_running_guest_answers_for_its_exits_and_ends_with_the_shim() {
    if kvm().is_none() {
        return println!("skipped: no /dev/kvm");
    }
    let Some(vmm) = Vmm::start() else { return };
    // in al, 0x99; hlt; and again
    vmm.configure(configure(), &kernel(&[0xe4, 0x99, 0xf4, 0xeb, 0xfb]));
    while vmm.control.receive::<FromVmm>().unwrap().0 != FromVmm::Running {}
    let seen = loop {
        vmm.control.send(&ToVmm::QueryExits, &[]).unwrap();
        let FromVmm::Exits(counts) = vmm.control.receive::<FromVmm>().unwrap().0 else {
            panic!()
        };
        if let Some(count) = counts.get("port read nowhere") {
            break *count;
        }
    };
    assert_eq!(seen, 1);
    assert!(vmm.end().success(), "no shim, no VM");
}

#[test]
fn what_is_no_kernel_is_told_with_step_reason_and_hint() {
    let Some((step, error, hint)) = failure(configure(), &File::open("/bin/sh").unwrap()) else {
        return;
    };
    assert_eq!(step, "read guest images");
    assert!(error.contains("PVH"), "{error}");
    assert!(hint.unwrap().contains("vmlinux"));
}

#[test]
fn too_little_memory_is_told_with_the_least() {
    let small = Configure {
        memory_mib: 8,
        ..configure()
    };
    let Some((_, error, hint)) = failure(small, &kernel(&[0xf4])) else {
        return;
    };
    assert!(error.contains("memory_mib = 8"), "{error}");
    assert!(hint.unwrap().contains("at least"));
}

#[test]
fn another_build_is_told_with_both_ids() {
    let other = Configure {
        build_id: "other".to_owned(),
        ..configure()
    };
    let Some((step, error, _)) = failure(other, &kernel(&[0xf4])) else {
        return;
    };
    assert_eq!(step, "check configuration");
    assert!(error.contains("other") && error.contains(BUILD_ID), "{error}");
}

#[test]
fn a_shim_that_dies_before_it_says_anything_leaves_no_vmm() {
    let Some(vmm) = Vmm::start() else { return };
    assert_eq!(vmm.end().code(), Some(1));
}
