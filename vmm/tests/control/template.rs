//! A VMM in its jail whose guest continues from a template, or boots because that can't be used.

use std::fs::Permissions;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nacre_protocol::control::Outcome;
use nacre_vmm::config::{Config, ConsoleOutput};
use nacre_vmm::jail::Confinement;
use nacre_vmm::machine::{self, DeviceBuilder, Machine, Resources};
use nacre_vmm::snapshot::format::{self, Header};
use nacre_vmm::snapshot::state::MachineState;
use nacre_vmm::snapshot::{Images, Target};
use nacre_vmm::virtio::{fs, vsock};
use tempfile::TempDir;

use super::guest::{POWER_OFF, write_port};
use super::*;

/// No connection is expected.
struct Nobody;

impl vsock::Host for Nobody {
    fn expects(&mut self, _ports: vsock::Ports) -> bool {
        false
    }

    fn connect(&mut self, _ports: vsock::Ports, _stream: OwnedFd) -> Result<(), vsock::Refused> {
        Err(vsock::Refused)
    }
}

/// A guest that powers off when its generation id changes, and that counts exits until then.
fn code() -> Vec<u8> {
    [
        b"\x48\x8b\x1c\x25\x00\xf0\x0f\x00".to_vec(), // mov rbx, [0xff000]
        b"\xe4\x99".to_vec(),                         // again: in al, 0x99
        b"\x48\x3b\x1c\x25\x00\xf0\x0f\x00".to_vec(), // cmp rbx, [0xff000]
        b"\x74\xf4".to_vec(),                         // je again
        write_port(POWER_OFF),
    ]
    .concat()
}

/// A guest's kernel, and its snapshot.
struct Template {
    kernel: File,
    directory: TempDir,
}

/// Changes what the file `state` has.
type Change = fn(&mut Header, &mut MachineState);

impl Template {
    /// A copy of the file `state` that `change` has changed, with the sum of the changed content.
    fn with_state(&self, change: Change) -> File {
        let bytes = std::fs::read(self.path("snapshot").join("state")).unwrap();
        let (mut header, mut machine) = format::decode(&bytes, nacre_vmm::snapshot::BUILD).unwrap();
        change(&mut header, &mut machine);
        let path = self.path("changed");
        std::fs::write(&path, format::encode(&header, &machine).unwrap()).unwrap();
        let changed = File::open(path).unwrap();
        changed.set_permissions(Permissions::from_mode(0o600)).unwrap();
        changed
    }

    /// Runs the guest in this process, and saves it; None without KVM.
    fn new() -> Option<Self> {
        let Some(kvm) = kvm() else {
            println!("skipped: no /dev/kvm");
            return None;
        };
        let template = Self {
            kernel: kernel(&code()),
            directory: tempfile::tempdir().unwrap(),
        };
        let initramfs = template.path("initramfs");
        std::fs::write(&initramfs, INITRD).unwrap();
        let config = Config {
            pod: "template".to_owned(),
            memory_mib: 64,
            vcpus: 1,
            max_vcpus: 1,
            extra_cmdline: "a=1 nacre-template".to_owned(),
            console: ConsoleOutput::RingOnly,
            can_be_saved: true,
        };
        let resources = Resources {
            kvm: kvm.into(),
            kernel: template.kernel.try_clone().unwrap(),
            initrd: File::open(&initramfs).unwrap(),
            console_ring: None,
            devices: devices(),
        };
        let mut machine = machine::build(&config, resources, &Confinement::none(), |_| {}).unwrap();
        machine.run();
        while !machine.exit_counts().contains_key("port read unclaimed") {
            std::thread::yield_now();
        }
        machine.pause().unwrap();
        template.save(&machine, &initramfs);
        Some(template)
    }

    fn save(&self, machine: &Machine, initramfs: &Path) {
        let kernel = format!("/proc/self/fd/{}", self.kernel.as_raw_fd());
        let images = Images {
            kernel: Path::new(&kernel),
            initramfs,
        };
        let target = Target::create(&self.path("snapshot"), images, "a=1").unwrap();
        let (state, memory) = machine.capture(&target).unwrap();
        target.finish(&state, memory).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str) -> File {
        File::open(self.path("snapshot").join(name)).unwrap()
    }

    /// Starts a VMM that continues from `state` and the template's memory; None if this process may not.
    fn start(&self, configure: Configure, kernel: &File, state: &File) -> Option<Vmm> {
        let vmm = Vmm::start()?;
        let memory = self.file("memory");
        vmm.configure_with(configure, kernel, &[state.as_raw_fd(), memory.as_raw_fd()]);
        Some(vmm)
    }
}

fn devices() -> Vec<DeviceBuilder> {
    let vsock = vsock::Config {
        host: Box::new(Nobody),
        listener: None,
    };
    let fs = fs::Config {
        tag: SHARED_TAG.to_owned(),
        root: "/".into(),
        prepared: fs::Prepared::without_jail().unwrap(),
    };
    vec![
        Box::new(|env| vsock::spawn(vsock, env)),
        Box::new(|env| fs::spawn(fs, env)),
    ]
}

/// A VM that the template can be used for.
fn with_template() -> Configure {
    Configure {
        extra_cmdline: "a=1".to_owned(),
        template: Some(TemplateFiles {
            state: FdIndex(5),
            memory: FdIndex(6),
        }),
        ..configure()
    }
}

#[test]
fn a_guest_continues_from_a_template_as_another_machine() {
    let Some(template) = Template::new() else { return };
    let state = template.file("state");
    let later = DeviceConfig::Mem { max_mib: 128 };
    for devices in [Vec::new(), vec![later]] {
        let mut configure = with_template();
        configure.devices.extend(devices);
        // The position of the descriptor is that of every VMM that has it.
        let Some(vmm) = template.start(configure, &template.kernel, &state) else {
            return;
        };
        let mut messages = vmm.messages();
        messages.retain(|message| !matches!(message, FromVmm::Step(_)));
        // It would not power off if it had booted.
        assert_eq!(messages, [FromVmm::Running, FromVmm::Ended(Outcome::PowerOff)]);
        assert!(vmm.close().success());
    }
}

#[test]
fn a_template_that_can_t_be_used_is_named_and_the_guest_boots() {
    let Some(template) = Template::new() else { return };
    let state = template.file("state");
    let refused = |configure: Configure, kernel: &File, state: &File, expected: &str| {
        let Some(vmm) = template.start(configure, kernel, state) else {
            return;
        };
        let mut reasons = Vec::new();
        loop {
            let message = vmm.control.receive::<FromVmm>().unwrap().0;
            if message == FromVmm::Running {
                break;
            } else if let FromVmm::TemplateRefused { reason, is_transient } = message {
                assert!(!is_transient, "{reason}");
                reasons.push(reason);
            } else {
                assert!(matches!(message, FromVmm::Step(_)), "{expected}: {message:?}");
            }
        }
        assert!(
            reasons.len() == 1 && reasons[0].contains(expected),
            "{expected}: {reasons:?}"
        );
        // The guest runs until the shim is gone.
        assert_eq!(vmm.request(Request::Pause), Ok(Answer::Done));
        assert_eq!(vmm.close().code(), Some(0));
    };
    let mut rows = vec![
        ("memory_mib", json!(128), "memory_mib = 64, the VM has 128"),
        ("max_vcpus", json!(2), "max_vcpus = 1, the VM has 2"),
        (
            "extra_cmdline",
            json!("a=2"),
            r#"parameters "a=1", the VM has "a=2""#,
        ),
    ];
    let devices = |devices: &[DeviceConfig]| json!(devices);
    let fs = |tag: &str| DeviceConfig::Fs { tag: tag.to_owned() };
    rows.push((
        "devices",
        devices(&[VSOCK]),
        r#"has the devices ["vsock", "fs"], the VM ["vsock"]"#,
    ));
    rows.push((
        "devices",
        devices(&[fs("nacre"), VSOCK]),
        r#"the VM ["fs", "vsock"]"#,
    ));
    rows.push(("devices", devices(&[VSOCK, fs("other")]), "has the tag \"nacre\""));
    for (field, value, expected) in rows {
        let mut changed = json!(with_template());
        changed[field] = value;
        let changed = serde_json::from_value(changed).unwrap();
        refused(changed, &template.kernel, &state, expected);
    }
    let other = kernel(&[code(), vec![0x90]].concat());
    refused(
        with_template(),
        &other,
        &state,
        "the VM's kernel is not the kernel of the snapshot",
    );
    let damaged = template.path("damaged");
    std::fs::copy(template.path("snapshot").join("state"), &damaged).unwrap();
    let damaged = File::options().read(true).write(true).open(damaged).unwrap();
    damaged.write_all_at(b"?", 100).unwrap();
    let expected = "the template's state: damaged: the sum of the content is another";
    refused(with_template(), &template.kernel, &damaged, expected);
    let memory = template.file("memory");
    refused(
        with_template(),
        &template.kernel,
        &memory,
        "the template's state: not a snapshot",
    );
    let rows: [(Change, &str); 3] = [
        (
            |_, machine| machine.host.tsc_khz += 1,
            "compare the host: the snapshot was made on another host: it differs in the frequency",
        ),
        (
            |_, machine| machine.host.feature_msrs.push((0x8b, 1)),
            "compare the host: the snapshot was made on another host: it differs in the MSR 0x8b",
        ),
        (
            |header, _| header.build = "1+x".to_owned(),
            "made by the build 1+x of nacre-vmm",
        ),
    ];
    for (change, expected) in rows {
        let changed = template.with_state(change);
        refused(with_template(), &template.kernel, &changed, expected);
    }
}

/// As templates are saved, except that no agent is waited for.
#[test]
fn a_restored_guest_is_saved_again_in_the_jail() {
    let Some(template) = Template::new() else { return };
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: not root");
    }
    let kernel = format!("/proc/{}/fd/{}", std::process::id(), template.kernel.as_raw_fd());
    let mut command = Command::new(env!("CARGO_BIN_EXE_nacre-vmm"));
    command
        .args(["--kernel", &kernel, "--initrd"])
        .arg(template.path("initramfs"));
    command.arg("--restore").arg(template.path("snapshot"));
    command.arg("--save").arg(template.path("again"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let memory = |name: &str| std::fs::read(template.path(name).join("memory")).unwrap();
    assert!(
        memory("snapshot") == memory("again"),
        "the guest's memory differs"
    );
}
