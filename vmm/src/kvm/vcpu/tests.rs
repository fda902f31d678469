//! A vCPU of a guest with a few instructions, on real KVM. The tests print why they are skipped without it.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::sync::{Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::bus::{Bus, BusDevice};
use crate::devices::power::{PORTS, PowerRegisters, RESET, RESET_VALUE};
use crate::jail::calls::VCPU;
use crate::kvm::{Vm, cpuid, registers, tests::vm};
use crate::layout;
use crate::memory;
use crate::memory::Memory;

const CODE: u64 = 0x10_0000;
/// Where the guests write.
const DATA: GuestAddress = GuestAddress(0x10_1000);
const DEADLINE: Duration = Duration::from_secs(20);

/// A guest that runs. It has the power registers, at port 0x80 a device that panics, at port 0x90 a
/// [`Recording`], and at port 0xb0 a [`Pausing`].
struct Guest {
    thread: Arc<OnceLock<VcpuThread>>,
    vm_exit: VmExit,
    memory: Memory,
    buses: Arc<IoBuses>,
    recording: Recording,
    paused: Receiver<u8>,
    _vm: Vm,
}

impl Guest {
    /// Starts `code` on the first vCPU; None without KVM.
    fn start(code: &[u8]) -> Option<Self> {
        let vm = vm()?;
        let memory = memory::allocate(2 << 20).unwrap();
        memory.write_slice(code, GuestAddress(CODE)).unwrap();
        let no_initrd = crate::boot::initrd::Location { address: 0, bytes: 0 };
        crate::boot::zero_page::write(&memory, "", no_initrd, 0, [0; 32]).unwrap();
        vm.set_memory(&memory).unwrap();
        let fd = vm.create_vcpu(0).unwrap();
        let cpuid = cpuid::for_vcpu(vm.supported_cpuid(), 0, 1).unwrap();
        fd.set_cpuid2(&cpuid).unwrap();
        registers::set_entry(&fd, CODE).unwrap();
        let vm_exit = VmExit::new().unwrap();
        let thread = Arc::new(OnceLock::new());
        let (pausing, paused) = channel();
        let recording = Recording::default();
        let pausing = Pausing(Arc::downgrade(&thread), Some(pausing));
        let buses = Arc::new(buses(&vm_exit, recording.clone(), pausing));
        let (confined, is_confined) = channel();
        let vcpu = Vcpu {
            index: 0,
            fd,
            profile: &VCPU,
            buses: Arc::clone(&buses),
            vm_exit: vm_exit.clone(),
        };
        thread
            .set(vcpu.spawn(confined, Confinement::none()).unwrap())
            .unwrap();
        is_confined.recv().unwrap().unwrap();
        assert!(!vm_exit.is_set());
        let guest = Self {
            thread,
            vm_exit,
            memory,
            buses,
            recording,
            paused,
            _vm: vm,
        };
        guest.thread().run().unwrap();
        Some(guest)
    }

    fn thread(&self) -> &VcpuThread {
        self.thread.get().unwrap()
    }

    /// Waits for the end of the VM.
    fn outcome(&self) -> Outcome {
        assert!(self.ends_within(20_000), "the guest did not end");
        self.vm_exit.outcome().unwrap()
    }

    fn ends_within(&self, milliseconds: u16) -> bool {
        let mut fds = [PollFd::new(self.vm_exit.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, milliseconds).unwrap() == 1
    }

    fn pause(&self) {
        let (paused, is_paused) = channel();
        self.thread().pause(paused).unwrap();
        assert_eq!(is_paused.recv_timeout(DEADLINE), Ok(0));
    }

    /// The number at [`DATA`].
    fn counter(&self) -> u64 {
        self.memory.read_obj(DATA).unwrap()
    }

    /// Waits until the guest has changed its counter from `before`.
    fn wait_for_count(&self, before: u64) {
        let started = Instant::now();
        while self.counter() == before {
            assert!(started.elapsed() < DEADLINE, "the guest does not count");
            assert!(!self.ends_within(1), "{:?}", self.vm_exit.outcome());
        }
    }
}

struct Panicking;

impl BusDevice for Panicking {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, _data: &[u8]) {
        panic!("the message with offset {offset}");
    }
}

/// Keeps the data of each access; its reads give the number of accesses until then, from 1.
#[derive(Clone, Default)]
struct Recording(Arc<Mutex<Vec<Vec<u8>>>>);

impl Recording {
    fn accesses(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().clone()
    }
}

impl BusDevice for Recording {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let next = u8::try_from(self.accesses().len() + 1).unwrap();
        data.fill(next);
        self.write(offset, data);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        self.0.lock().unwrap().push(data.to_vec());
    }
}

/// Orders the vCPU that first reads it to pause; reads as 7.
struct Pausing(Weak<OnceLock<VcpuThread>>, Option<Sender<u8>>);

impl BusDevice for Pausing {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        if let Some(paused) = self.1.take() {
            let thread = self.0.upgrade().unwrap();
            thread.get().unwrap().pause(paused).unwrap();
        }
        data.fill(7);
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

fn buses(vm_exit: &VmExit, recording: Recording, pausing: Pausing) -> IoBuses {
    let mut ports = Bus::new("port");
    let power = Box::new(PowerRegisters::new(vm_exit.clone()));
    ports
        .insert("power", u64::from(layout::POWER_PORT), u64::from(PORTS), power)
        .unwrap();
    ports.insert("panicking", 0x80, 1, Box::new(Panicking)).unwrap();
    ports.insert("recording", 0x90, 4, Box::new(recording)).unwrap();
    ports.insert("pausing", 0xb0, 1, Box::new(pausing)).unwrap();
    IoBuses {
        ports,
        mmio: Bus::new("mmio"),
        other_exits: OtherExits::default(),
    }
}

/// `mov al, VALUE; mov dx, PORT; out dx, al; hlt`.
fn write_port(port: u16, value: u8) -> [u8; 8] {
    let [low, high] = port.to_le_bytes();
    [0xb0, value, 0x66, 0xba, low, high, 0xee, 0xf4]
}

#[test]
fn a_write_to_the_reset_register_is_a_reset() {
    let Some(guest) = Guest::start(&write_port(layout::POWER_PORT + RESET, RESET_VALUE)) else {
        return;
    };
    assert_eq!(
        guest.outcome(),
        Outcome::Reset {
            cause: "ACPI reset register".to_owned()
        }
    );
    let mut counts = BTreeMap::new();
    guest.buses.ports.add_counts(&mut counts);
    assert_eq!(counts["port write power"], 1);
}

#[test]
fn a_triple_fault_is_a_reset() {
    // ud2 without an IDT.
    let Some(guest) = Guest::start(&[0x0f, 0x0b]) else {
        return;
    };
    let outcome = guest.outcome();
    // On some hosts KVM reports an internal error instead.
    assert!(
        matches!(outcome, Outcome::Reset { .. } | Outcome::Fault { .. }),
        "{outcome:?}"
    );
}

#[test]
fn a_panic_of_the_thread_is_a_fault_with_its_message() {
    let Some(guest) = Guest::start(&write_port(0x80, 0)) else {
        return;
    };
    assert_eq!(
        guest.outcome(),
        Outcome::Fault {
            part: "vCPU 0".to_owned(),
            error: "its thread panicked: the message with offset 0".to_owned()
        }
    );
}

#[test]
fn a_string_instruction_is_split_into_accesses_of_its_size() {
    let recording = Recording::default();
    let pausing = Pausing(Weak::default(), None);
    let buses = buses(&VmExit::new().unwrap(), recording.clone(), pausing);
    let mut data = [0; 4];
    buses.read_port(0x90, 1, &mut data);
    assert_eq!(data, [1, 2, 3, 4]);
    buses.read_port(0x90, 4, &mut data);
    assert_eq!(data, [5; 4]);
    buses.write_port(0x90, 2, &[6, 7, 8, 9]);
    // KVM never reports a size of 0; if it did, the accesses would have one byte.
    buses.write_port(0x90, 0, &[10]);
    let expected: [&[u8]; 8] = [&[1], &[2], &[3], &[4], &[5; 4], &[6, 7], &[8, 9], &[10]];
    assert_eq!(recording.accesses(), expected);
}

#[test]
fn a_guest_reads_and_writes_a_port_by_string_instructions() {
    // cld; mov edi, 0x101000; mov esi, edi; mov edx, 0x90; mov ecx, 4; rep insb; mov ecx, 4; rep outsb
    let mut code =
        b"\xfc\xbf\x00\x10\x10\x00\x89\xfe\xba\x90\0\0\0\xb9\x04\0\0\0\xf3\x6c\xb9\x04\0\0\0\xf3\x6e"
            .to_vec();
    code.extend(write_port(layout::POWER_PORT + RESET, RESET_VALUE));
    let Some(guest) = Guest::start(&code) else {
        return;
    };
    let outcome = guest.outcome();
    assert!(matches!(outcome, Outcome::Reset { .. }), "{outcome:?}");
    let expected: [&[u8]; 8] = [&[1], &[2], &[3], &[4], &[1], &[2], &[3], &[4]];
    assert_eq!(guest.recording.accesses(), expected);
}

/// inc qword [0x101000]; jmp to the start.
const COUNT: &[u8] = b"\x48\xff\x04\x25\x00\x10\x10\x00\xeb\xf6";

#[test]
fn a_paused_vcpu_runs_no_instruction_until_it_is_resumed() {
    let Some(guest) = Guest::start(COUNT) else {
        return;
    };
    for _ in 0..100 {
        guest.wait_for_count(guest.counter());
        guest.pause();
        let counter = guest.counter();
        // A second pause has no effect.
        guest.pause();
        assert_eq!(guest.counter(), counter);
        guest.thread().run().unwrap();
    }
    guest.wait_for_count(guest.counter());
    guest.pause();
    let counter = guest.counter();
    assert!(!guest.ends_within(20));
    assert_eq!(guest.counter(), counter, "20 ms later");
}

#[test]
fn a_pause_that_is_given_up_at_once_leaves_the_vcpu_running() {
    let Some(guest) = Guest::start(COUNT) else {
        return;
    };
    guest.wait_for_count(0);
    let (paused, is_paused) = channel();
    guest.thread().pause(paused).unwrap();
    guest.thread().run().unwrap();
    drop(is_paused);
    // Both orders are carried out before the next pause is.
    guest.pause();
    let counter = guest.counter();
    guest.thread().run().unwrap();
    guest.wait_for_count(counter);
}

#[test]
fn a_pause_completes_the_instruction_that_reads_a_device() {
    // cld; mov edi, 0x101000; mov esi, edi; mov edx, 0xb0; mov ecx, 4; rep insb; nop; jmp to the nop
    let code = b"\xfc\xbf\x00\x10\x10\x00\x89\xfe\xba\xb0\0\0\0\xb9\x04\0\0\0\xf3\x6c\x90\xeb\xfd";
    let Some(guest) = Guest::start(code) else {
        return;
    };
    assert_eq!(guest.paused.recv_timeout(DEADLINE), Ok(0));
    assert_eq!(
        guest.counter(),
        0x0707_0707,
        "the guest's memory has what the device returned"
    );
}

#[test]
fn the_thread_exits_if_nobody_can_give_it_orders() {
    let Some(mut guest) = Guest::start(COUNT) else {
        return;
    };
    guest.pause();
    drop(std::mem::take(&mut guest.thread));
    let started = Instant::now();
    // The thread has a reference to the buses.
    while Arc::strong_count(&guest.buses) > 1 {
        assert!(started.elapsed() < DEADLINE, "the thread has not exited");
        assert!(!guest.ends_within(1), "{:?}", guest.vm_exit.outcome());
    }
}
