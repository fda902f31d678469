//! `nacre-vmm --control-fd` as the shim starts it, with guests of a few instructions: every message that the
//! shim can receive. Needs root for the jail, and /dev/kvm for the tests that run a guest; a test that is
//! skipped prints why.
#![allow(missing_docs, reason = "a test")]

#[path = "control/common.rs"]
mod common;
#[path = "control/disk.rs"]
mod disk;
mod guest;
#[path = "control/memory.rs"]
mod memory;
#[path = "control/network.rs"]
mod network;
#[path = "control/outcomes.rs"]
mod outcomes;
#[path = "control/pause.rs"]
mod pause;
#[path = "control/template.rs"]
mod template;
#[path = "control/used_calls.rs"]
mod used_calls;

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::process::{Child, Command, ExitStatus, Stdio};

use nacre_protocol::BUILD_ID;
use nacre_protocol::console::RING_BYTES;
use nacre_protocol::control::{
    Answer, Channel, Configure, DeviceConfig, Error, ErrorText, FdIndex, FromVmm, MAX_DEVICES, MAX_FDS,
    Request, TemplateFiles, ToVmm,
};
use nacre_protocol::guest::SHARED_TAG;
use nacre_protocol::stream_table::TABLE_BYTES;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde_json::{Value, json};

use guest::{kernel, kvm};

struct Vmm {
    child: Child,
    control: Channel,
    console: File,
}

impl Vmm {
    /// Starts the VMM; None if this process may not create a jail.
    fn start() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return None;
        }
        // The VMM's end must survive execve, so the pair is created without SOCK_CLOEXEC. The test's end gets
        // the flag afterwards, since it would leak into the children of other tests.
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
        let console = tempfile::tempfile().unwrap();
        console.set_len(RING_BYTES).unwrap();
        Some(Self {
            child,
            control: Channel::new(ours),
            console,
        })
    }

    fn configure(&self, configure: Configure, kernel: &File) {
        self.configure_with(configure, kernel, &[]);
    }

    /// With `more` descriptors after those of [`configure`].
    fn configure_with(&self, configure: Configure, kernel: &File, more: &[RawFd]) {
        let mut initrd = tempfile::tempfile().unwrap();
        initrd.write_all(INITRD).unwrap();
        let kvm: OwnedFd = kvm().unwrap_or_else(|| File::open("/dev/null").unwrap()).into();
        let stream_table = tempfile::tempfile().unwrap();
        stream_table.set_len(TABLE_BYTES).unwrap();
        let fds: [RawFd; FDS] = [
            kvm.as_raw_fd(),
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            self.console.as_raw_fd(),
            stream_table.as_raw_fd(),
        ];
        let message: ToVmm = ToVmm::Configure(configure);
        self.control.send(&message, &[&fds, more].concat()).unwrap();
    }

    /// Receives all messages until the VMM closes its end.
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

    /// Starts a guest with `code` and waits until it runs; None if this host can't.
    fn running(code: &[u8]) -> Option<Self> {
        if kvm().is_none() {
            println!("skipped: no /dev/kvm");
            return None;
        }
        let vmm = Self::start()?;
        vmm.configure(configure(), &kernel(code));
        while vmm.control.receive::<FromVmm>().unwrap().0 != FromVmm::Running {}
        Some(vmm)
    }

    fn send_request(&self, id: u64, request: Request) {
        self.control.send(&ToVmm::Request { id, request }, &[]).unwrap();
    }

    /// Receives a message, which must be an answer.
    fn answer(&self) -> (u64, Result<Answer, ErrorText>) {
        let message = self.control.receive::<FromVmm>().unwrap().0;
        let FromVmm::Answer { id, result } = message else {
            panic!("{message:?}")
        };
        (id, result)
    }

    /// Receives the messages of a VMM that refuses its configuration; returns step, error and hint.
    fn failure(self) -> (String, String, Option<String>) {
        let mut messages = self.messages();
        messages.retain(|message| !matches!(message, FromVmm::Step(_)));
        let [FromVmm::Failed { step, error, hint }] = &messages[..] else {
            panic!("{messages:?}")
        };
        assert_eq!(self.close().code(), Some(1));
        (step.clone(), error.clone(), hint.clone())
    }

    /// Closes the shim's end and waits for the VMM to exit.
    fn close(mut self) -> ExitStatus {
        drop(self.control);
        self.child.wait().unwrap()
    }
}

/// The content of the initramfs.
const INITRD: &[u8] = &[7; 5000];

/// Number of descriptors that [`configure`] names.
const FDS: usize = 5;

const VSOCK: DeviceConfig = DeviceConfig::Vsock {
    stream_table: FdIndex(4),
};

fn configure() -> Configure {
    Configure {
        build_id: BUILD_ID.to_owned(),
        pod: "test".to_owned(),
        memory_mib: 64,
        vcpus: 1,
        max_vcpus: 1,
        extra_cmdline: String::new(),
        console_to_stderr: false,
        kvm: FdIndex(0),
        kernel: FdIndex(1),
        initrd: FdIndex(2),
        console_ring: FdIndex(3),
        template: None,
        devices: vec![
            VSOCK,
            DeviceConfig::Fs {
                tag: SHARED_TAG.to_owned(),
            },
        ],
    }
}

/// Starts the VMM with a configuration that it refuses; returns step, error and hint.
fn failure(configure: Configure, kernel: &File) -> Option<(String, String, Option<String>)> {
    let vmm = Vmm::start()?;
    vmm.configure(configure, kernel);
    Some(vmm.failure())
}

/// `in al, 0x99; hlt`, in a loop. No interrupt ends the hlt.
const IDLE_GUEST: &[u8] = &[0xe4, 0x99, 0xf4, 0xeb, 0xfb];

#[test]
fn exits_are_counted_and_the_vmm_exits_with_the_shim() {
    let Some(vmm) = Vmm::running(IDLE_GUEST) else {
        return;
    };
    let seen = (0..).find_map(|id| {
        vmm.send_request(id, Request::Exits);
        let (answered, Ok(Answer::Exits(counts))) = vmm.answer() else {
            panic!()
        };
        assert_eq!(answered, id);
        counts.get("port read unclaimed").copied()
    });
    assert_eq!(seen, Some(1));
    assert!(
        vmm.close().success(),
        "the VMM exits when the shim closes the socket"
    );
}

#[test]
fn requests_are_answered_once_and_in_order_the_unknown_ones_by_an_error() {
    let Some(vmm) = Vmm::running(IDLE_GUEST) else {
        return;
    };
    let file = tempfile::tempfile().unwrap();
    let rows = [
        (json!("Exits"), 0, None),
        (json!("Fly"), 0, Some("Fly")),
        (json!({"Fly": {"to": "x".repeat(60_000)}}), 0, Some("Fly")),
        (json!({"y".repeat(60_000): null}), 0, Some("yyy")),
        (json!("Exits"), 1, Some("no field uses descriptor 0")),
        (json!(null), 0, Some("null")),
        (json!("Exits"), 0, None),
    ];
    // Ids are the shim's to choose.
    let ids = [u64::MAX, 3, 3, 0, 9, 1, 2];
    for (id, (request, fds, _)) in ids.into_iter().zip(&rows) {
        let message = json!({"Request": {"id": id, "request": request}});
        vmm.control.send(&message, &vec![file.as_raw_fd(); *fds]).unwrap();
    }
    for (id, (request, _, error)) in ids.into_iter().zip(&rows) {
        let (answered, result) = vmm.answer();
        assert_eq!(answered, id, "{request:.40}");
        match (result, error) {
            (Ok(Answer::Exits(_)), None) => {}
            (Err(text), Some(expected)) => assert!(text.to_string().contains(expected), "{text}"),
            (result, _) => panic!("{request:.40}: {result:?}"),
        }
    }
    assert_eq!(vmm.close().code(), Some(0));
}

/// `in al, 0x99`, in a loop: each round is a VM exit.
const BUSY_GUEST: &[u8] = &[0xe4, 0x99, 0xeb, 0xfc];

impl Vmm {
    /// Sends a request and returns its result.
    fn request(&self, request: Request) -> Result<Answer, ErrorText> {
        self.send_request(1, request);
        self.answer().1
    }

    /// The number of exits of [`BUSY_GUEST`]'s reads so far.
    fn reads(&self) -> u64 {
        let Ok(Answer::Exits(counts)) = self.request(Request::Exits) else {
            panic!()
        };
        counts.get("port read unclaimed").copied().unwrap_or_default()
    }
}

#[test]
fn a_packet_that_is_no_message_ends_the_vm() {
    for packet in [
        json!("Nonsense"),
        json!({"Request": {"request": "Exits"}}),
        json!([]),
    ] {
        let Some(mut vmm) = Vmm::running(IDLE_GUEST) else {
            return;
        };
        vmm.control.send(&packet, &[]).unwrap();
        assert_eq!(vmm.child.wait().unwrap().code(), Some(0), "{packet}");
    }
}

#[test]
fn an_invalid_kernel_fails_with_step_reason_and_hint() {
    let Some((step, error, hint)) = failure(configure(), &File::open("/bin/sh").unwrap()) else {
        return;
    };
    assert_eq!(step, "read guest images");
    assert!(error.contains("PVH"), "{error}");
    assert!(hint.unwrap().contains("vmlinux"));
}

#[test]
fn too_little_memory_fails_with_the_minimum() {
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
fn a_shim_of_another_build_fails_with_both_build_ids() {
    let other = Configure {
        build_id: "other".to_owned(),
        ..configure()
    };
    let Some((step, error, _)) = failure(other, &kernel(&[0xf4])) else {
        return;
    };
    assert_eq!(step, "receive configuration");
    assert!(error.contains("other") && error.contains(BUILD_ID), "{error}");
}

/// Malformed configurations: the field to replace, its value in JSON, the number of descriptors, and what the
/// error must contain.
#[rustfmt::skip]
const MALFORMED: &[(&str, &str, usize, &str)] = &[
    ("kernel", "5", FDS, "kernel: there is no descriptor 5"),
    ("kernel", "255", FDS, "kernel: there is no descriptor 255"),
    ("kernel", "256", FDS, "256"),
    ("kernel", "-1", FDS, "-1"),
    ("kernel", r#""1""#, FDS, r#""1""#),
    ("initrd", "1", FDS, "initrd: descriptor 1 is already used"),
    ("console_ring", "0", FDS, "console_ring: descriptor 0 is already used"),
    ("kvm", "4", FDS, "kvm: descriptor 4 is already used"),
    ("pod", r#""p""#, 0, "there is no descriptor 4"),
    ("pod", r#""p""#, FDS - 1, "vsock: stream_table: there is no descriptor 4"),
    ("pod", r#""p""#, FDS + 1, "no field uses descriptor 5"),
    ("pod", r#""p""#, MAX_FDS, "no field uses descriptor 5"),
    ("devices", "[]", FDS, "a vsock device is required"),
    ("devices", r#"[{"Fs": {"tag": "a"}}]"#, FDS, "a vsock device is required"),
    ("devices", r#"[{"Vsock": {"stream_table": 4}}, {"Vsock": {"stream_table": 5}}]"#, FDS, "2 devices of kind vsock"),
    ("devices", r#"[{"Fs": {"tag": "a"}}, {"Fs": {"tag": "b"}}]"#, FDS, "2 devices of kind fs"),
    ("devices", r#"["Floppy"]"#, FDS, "Floppy"),
    ("devices", r#"[{"Fs": {"tag": "a", "root": "/"}}]"#, FDS, "root"),
    ("devices", r#"[{"Fs": {}}]"#, FDS, "tag"),
    ("devices", r#"["Vsock"]"#, FDS, "unit variant"),
    ("devices", "null", FDS, "null"),
    ("unknown", "1", FDS, "unknown"),
    ("vcpus", "0", FDS, "vcpus = 0"),
    ("vcpus", "2", FDS, "max_vcpus = 1: must be 2"),
    ("max_vcpus", "33", FDS, "max_vcpus = 33"),
    ("memory_mib", "0", FDS, "memory_mib = 0"),
    ("memory_mib", "1.5", FDS, "1.5"),
    ("extra_cmdline", r#""a\nb""#, FDS, "kernel_params"),
];

#[test]
fn a_malformed_configuration_fails_with_the_reason() {
    let too_many = json!(vec![json!({"Fs": {"tag": "a"}}); MAX_DEVICES + 1]);
    let rows = MALFORMED.iter().map(|(field, value, fds, expected)| {
        let value = serde_json::from_str::<Value>(value).unwrap();
        (*field, value, *fds, *expected)
    });
    for (field, value, fds, expected) in rows.chain([("devices", too_many, FDS, "65 devices")]) {
        let Some(vmm) = Vmm::start() else { return };
        let mut message = json!({ "Configure": configure() });
        message["Configure"][field] = value.clone();
        let file = tempfile::tempfile().unwrap();
        vmm.control.send(&message, &vec![file.as_raw_fd(); fds]).unwrap();
        let (step, error, _) = vmm.failure();
        assert!(error.contains(expected), "{field} = {value}: {step}: {error}");
        assert!(step.ends_with("configuration"), "{field} = {value}: {step}");
    }
}

#[test]
fn a_device_that_can_t_be_created_fails_with_its_name() {
    if kvm().is_none() {
        return println!("skipped: no /dev/kvm");
    }
    for tag in [String::new(), "t".repeat(37)] {
        let devices = vec![VSOCK, DeviceConfig::Fs { tag }];
        let configure = Configure {
            devices,
            ..configure()
        };
        let Some((step, error, _)) = failure(configure, &kernel(&[0xf4])) else {
            return;
        };
        assert_eq!(step, "create virtio devices");
        assert!(error.contains("tag"), "{error}");
    }
}

#[test]
fn the_vmm_exits_if_the_shim_exits_before_it_configures() {
    let Some(vmm) = Vmm::start() else { return };
    assert_eq!(vmm.close().code(), Some(1));
}
