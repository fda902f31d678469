//! A machine on real KVM whose guest counts: saved, and continued in a second machine of this process. The
//! tests print why they are skipped without KVM.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::boot::kernel;
use crate::config::{Config, ConsoleOutput};
use crate::jail::Confinement;
use crate::machine::{DeviceBuilder, Resources, build, restore};
use crate::snapshot::{Images, Snapshot};
use crate::virtio::{Session, balloon, fs, mem, rng};

/// Where the guest counts.
const COUNTER: GuestAddress = GuestAddress(0x1000);
/// nop; nop; then inc qword [0x1000]; jmp back. The entry point is the third byte.
const CODE: &[u8] = b"\x90\x90\x48\xff\x04\x25\x00\x10\x00\x00\xeb\xf6";

/// The files of a guest, and its snapshots.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in [("kernel", "the kernel"), ("initramfs", "the initramfs")] {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn with_images<T>(&self, call: impl FnOnce(Images<'_>) -> T) -> T {
        let (kernel, initramfs) = (self.path("kernel"), self.path("initramfs"));
        call(Images {
            kernel: &kernel,
            initramfs: &initramfs,
        })
    }

    fn save(&self, machine: &Machine, name: &str) -> Result<(), SaveError> {
        let target = self.with_images(|images| Target::create(&self.path(name), images, ""));
        let target = target.unwrap();
        let (state, memory) = machine.capture(&target)?;
        Ok(target.finish(&state, memory)?)
    }

    fn restore(&self, name: &str, devices: Vec<DeviceBuilder>) -> Result<Machine, crate::machine::Failure> {
        let snapshot = self.with_images(|images| Snapshot::open(&self.path(name), images));
        let snapshot = snapshot.unwrap();
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let resources = restore::Resources {
            prepared: restore::prepare(kvm.into(), &snapshot)?,
            snapshot,
            console_ring: None,
            devices,
        };
        restore::restore(&config(true), resources, &Confinement::none(), |_| {})
    }
}

fn devices() -> Vec<DeviceBuilder> {
    let tree = || fs::Config {
        tag: "tag".to_owned(),
        root: "/".into(),
        prepared: fs::Prepared::without_jail().unwrap(),
    };
    vec![
        Box::new(move |env| fs::spawn(tree(), env)),
        Box::new(balloon::spawn),
    ]
}

/// A machine that has not started; None without KVM.
fn machine(devices: Vec<DeviceBuilder>, can_be_saved: bool) -> Option<Machine> {
    let Ok(kvm) = File::options().read(true).write(true).open("/dev/kvm") else {
        println!("skipped: no /dev/kvm");
        return None;
    };
    let mut initrd = tempfile::tempfile().unwrap();
    initrd.write_all(b"initrd").unwrap();
    let resources = Resources {
        kvm: kvm.into(),
        kernel: kernel::tests::vmlinux(CODE, &kernel::tests::pvh_note()),
        initrd,
        console_ring: None,
        devices,
    };
    Some(build(&config(can_be_saved), resources, &Confinement::none(), |_| {}).unwrap())
}

fn config(can_be_saved: bool) -> Config {
    Config {
        pod: "test".to_owned(),
        memory_mib: 64,
        vcpus: 1,
        max_vcpus: 2,
        extra_cmdline: String::new(),
        console: ConsoleOutput::RingOnly,
        can_be_saved,
    }
}

fn counter(machine: &Machine) -> u64 {
    machine.memory.read_obj(COUNTER).unwrap()
}

/// Waits until the guest has counted beyond `before`.
fn wait(machine: &Machine, before: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while counter(machine) <= before {
        assert!(!machine.vm_exit().is_set(), "{:?}", machine.vm_exit().outcome());
        assert!(Instant::now() < deadline, "the guest does not count");
        std::thread::yield_now();
    }
}

/// The content of a snapshot's file `state`.
fn state(files: &Files, name: &str) -> crate::snapshot::state::MachineState {
    let opened = files.with_images(|images| Snapshot::open(&files.path(name), images));
    opened.unwrap().machine
}

/// A paused machine whose guest has counted, and its snapshot `a`; None without KVM.
fn saved_machine() -> Option<(Machine, Files)> {
    let mut original = machine(devices(), true)?;
    let files = Files::new();
    original.run();
    wait(&original, 1000);
    original.pause().unwrap();
    files.save(&original, "a").unwrap();
    Some((original, files))
}

#[test]
fn a_guest_goes_on_from_its_snapshot_as_often_as_one_likes() {
    let Some((mut original, files)) = saved_machine() else {
        return;
    };
    let saved_at = counter(&original);
    original.resume().unwrap();
    wait(&original, saved_at);
    original.pause().unwrap();
    for _ in 0..2 {
        let mut restored = files.restore("a", devices()).unwrap();
        assert_eq!(counter(&restored), saved_at);
        restored.renew_generation_id().unwrap();
        restored.resume().unwrap();
        wait(&restored, saved_at + 1000);
        restored.pause().unwrap();
    }
}

#[test]
fn what_is_restored_is_saved_again() {
    let Some((original, files)) = saved_machine() else {
        return;
    };
    let restored = files.restore("a", devices()).unwrap();
    files.save(&restored, "b").unwrap();
    let memory = |name: &str| std::fs::read(files.path(name).join("memory")).unwrap();
    assert!(memory("a") == memory("b"), "the guest's memory differs");
    let (a, b) = (state(&files, "a"), state(&files, "b"));
    assert_eq!((a.size, &a.host), (b.size, &b.host));
    assert_eq!(
        (&a.io_apic, &a.serial, a.pci_address),
        (&b.io_apic, &b.serial, b.pci_address)
    );
    assert_eq!(a.devices, b.devices);
    let vcpus = |state: &crate::snapshot::state::MachineState| -> Vec<Vec<u8>> {
        state.vcpus.iter().map(|vcpu| vcpu.without_time()).collect()
    };
    assert!(vcpus(&a) == vcpus(&b), "the vCPUs differ");
    let clock = b.clock_ns - a.clock_ns;
    assert!(clock < 20_000_000_000, "the clock went on by {clock} ns");
    drop(original);
}

#[test]
fn what_can_not_be_saved_is_named() {
    let files = Files::new();
    let plugged = || -> DeviceBuilder {
        let config = mem::Config {
            max_bytes: 1 << 30,
            on_reached: Box::new(|_| {}),
        };
        Box::new(|env| mem::spawn(config, env))
    };
    let Some(mut with_mem) = machine(vec![Box::new(balloon::spawn), plugged()], true) else {
        return;
    };
    let error = files.save(&with_mem, "a").unwrap_err();
    assert_eq!(error.to_string(), "the guest is not paused");
    with_mem.run();
    with_mem.pause().unwrap();
    let error = files.save(&with_mem, "b").unwrap_err().to_string();
    assert_eq!(
        error,
        "virtio mem in PCI slot 1 can't be saved: it has state outside of its queues"
    );
    let used: DeviceBuilder = Box::new(|env| {
        let session = Session::default();
        session.begin();
        Ok(balloon::spawn(env)?.with_session(session))
    });
    let mut with_session = machine(vec![used], true).unwrap();
    with_session.run();
    with_session.pause().unwrap();
    let error = files.save(&with_session, "d").unwrap_err().to_string();
    assert!(
        error.starts_with("virtio balloon in PCI slot 0 can't be saved: the guest has used it"),
        "{error}"
    );
    let mut with_rng = machine(vec![Box::new(rng::spawn)], true).unwrap();
    with_rng.run();
    with_rng.pause().unwrap();
    let error = files.save(&with_rng, "e").unwrap_err().to_string();
    assert!(
        error.starts_with("virtio rng in PCI slot 0 can't be saved"),
        "{error}"
    );
    let mut unprepared = machine(devices(), false).unwrap();
    unprepared.run();
    unprepared.pause().unwrap();
    let error = files.save(&unprepared, "c").unwrap_err().to_string();
    assert_eq!(error, "the VM was not configured to be saved");
    for name in ["a", "b", "c", "d", "e"] {
        let opened = files.with_images(|images| Snapshot::open(&files.path(name), images));
        assert!(opened.is_err(), "{name}");
    }
}

#[test]
fn a_device_of_every_vm_comes_from_the_snapshot_and_is_not_added_again() {
    let Some((original, files)) = saved_machine() else {
        return;
    };
    drop(original);
    let mut configured = devices();
    configured.truncate(1);
    let mut restored = files.restore("a", configured).unwrap();
    assert_eq!(restored.devices.names(), [(0, "fs"), (1, "balloon")]);
    assert_eq!(restored.free_page_reports().unwrap(), None, "it has no driver");
    restored.attach_common().unwrap();
    assert_eq!(restored.devices.names(), [(0, "fs"), (1, "balloon"), (2, "rng")]);
}

#[test]
fn other_devices_than_those_of_the_snapshot_are_refused() {
    let Some(mut original) = machine(devices(), true) else {
        return;
    };
    let files = Files::new();
    original.run();
    original.pause().unwrap();
    files.save(&original, "a").unwrap();
    let other: Vec<DeviceBuilder> = vec![Box::new(rng::spawn)];
    let error = files.restore("a", other).err().unwrap().to_string();
    assert_eq!(
        error,
        "restore devices: the snapshot has the devices [(0, \"fs\"), (1, \"balloon\")], the VM [(0, \"rng\"), (1, \"balloon\")]"
    );
}

#[test]
fn another_host_and_a_missing_vcpu_are_found_before_anything_else() {
    let Some((original, files)) = saved_machine() else {
        return;
    };
    drop(original);
    let error = |change: &dyn Fn(&mut crate::snapshot::state::MachineState)| {
        let opened = files.with_images(|images| Snapshot::open(&files.path("a"), images));
        let mut snapshot = opened.unwrap();
        change(&mut snapshot.machine);
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        restore::prepare(kvm.into(), &snapshot).unwrap_err().to_string()
    };
    let text = error(&|machine| machine.host.tsc_khz += 1);
    assert!(
        text.starts_with(
            "compare the host: the snapshot was made on another host: it differs in the frequency"
        ),
        "{text}"
    );
    let text = error(&|machine| drop(machine.vcpus.pop()));
    assert_eq!(text, "compare the host: the snapshot has no vCPU 1");
}
