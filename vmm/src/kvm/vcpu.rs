//! The thread of one vCPU. Spawned by the machine; it runs the guest, passes port and MMIO accesses to the
//! buses, counts exits and sets the VM's outcome. It never touches a virtqueue and blocks on nothing but the
//! guest.
//!
//! ```text
//! Confining ──▶ WaitingForStart ──▶ Running ⟲ ──▶ Finished
//!     └──────────────┴─────────────────────────────▶ Finished    not confined, or the machine was dropped
//! ```
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use kvm_ioctls::{VcpuExit, VcpuFd};
use nacre_protocol::control::Outcome;

use crate::bus::Bus;
use crate::jail::calls::VCPU;
use crate::jail::{self, Confinement};
use crate::machine::vm_exit::VmExit;
use crate::process::{THREAD_STACK, panic_text};

/// The buses, shared by all vCPU threads and constant once the first of them runs.
pub struct IoBuses {
    /// Port I/O.
    pub ports: Bus,
    /// MMIO: guest-physical addresses that are not RAM.
    pub mmio: Bus,
    /// Counters of the exits that are not an access to a bus.
    pub other_exits: OtherExits,
}

impl IoBuses {
    /// Handles reads of the port `port`, each of `size` bytes, until `data` is full. Without string
    /// instructions it is one read.
    fn read_port(&self, port: u16, size: usize, data: &mut [u8]) {
        for access in data.chunks_mut(size.max(1)) {
            self.ports.read(u64::from(port), access);
        }
    }

    /// Handles writes of the port `port`, each of the next `size` bytes of `data`.
    fn write_port(&self, port: u16, size: usize, data: &[u8]) {
        for access in data.chunks(size.max(1)) {
            self.ports.write(u64::from(port), access);
        }
    }
}

/// Counters of exits that are neither port I/O nor MMIO.
#[derive(Debug, Default)]
pub struct OtherExits {
    interrupted: AtomicU64,
    unexpected: AtomicU64,
}

impl OtherExits {
    /// Adds the counters that are not 0 to `counts`.
    pub fn add_counts(&self, counts: &mut BTreeMap<String, u64>) {
        for (name, counter) in [
            ("interrupted", &self.interrupted),
            ("unexpected", &self.unexpected),
        ] {
            let count = counter.load(Ordering::Relaxed);
            if count > 0 {
                counts.insert(name.to_owned(), count);
            }
        }
    }
}

/// A vCPU whose thread has not been spawned.
pub struct Vcpu {
    /// Its number and APIC id, from 0.
    pub index: u8,
    /// KVM's descriptor, with CPUID and registers set.
    pub fd: VcpuFd,
    /// Handles the guest's port and MMIO accesses.
    pub buses: Arc<IoBuses>,
    /// Set by this thread if the guest resets or KVM fails; once it is set, by whatever thread, this thread
    /// ends.
    pub vm_exit: VmExit,
}

/// How the main thread and a vCPU thread wait for each other before the guest runs.
pub struct StartSync {
    /// The vCPU thread sends here whether it could be confined.
    pub confined: Sender<Result<(), jail::Error>>,
    /// The vCPU thread waits here for the start; it ends if the sender is dropped.
    pub start: Receiver<()>,
}

enum State {
    Confining,
    WaitingForStart,
    Running,
    Finished,
}

impl Vcpu {
    /// Spawns the thread. It runs no guest instruction before `sync.start` receives a message.
    ///
    /// # Errors
    /// The error of pthread_create(3).
    pub fn spawn(mut self, sync: StartSync, confinement: Confinement) -> io::Result<()> {
        std::thread::Builder::new()
            .name(format!("vcpu{}", self.index))
            .stack_size(THREAD_STACK)
            .spawn(move || {
                let (index, vm_exit) = (self.index, self.vm_exit.clone());
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run(&sync, &confinement))) {
                    vm_exit.set_fault(
                        format!("vCPU {index}"),
                        format_args!("its thread panicked: {}", panic_text(&*panic)),
                    );
                }
            })?;
        Ok(())
    }

    fn run(&mut self, sync: &StartSync, confinement: &Confinement) {
        let mut state = State::Confining;
        loop {
            state = match state {
                State::Confining => confine(sync, confinement),
                State::WaitingForStart => wait_for_start(sync),
                State::Running => self.run_until_exit(),
                State::Finished => return,
            };
        }
    }

    /// Runs the guest until its next exit to user space, and handles that.
    fn run_until_exit(&mut self) -> State {
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, _)) => {
                let (size, data) = super::raw::port_data(&mut self.fd);
                self.buses.read_port(port, size, data);
            }
            Ok(VcpuExit::IoOut(port, _)) => {
                let (size, data) = super::raw::port_data(&mut self.fd);
                self.buses.write_port(port, size, data);
            }
            Ok(VcpuExit::MmioRead(address, data)) => self.buses.mmio.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => self.buses.mmio.write(address, data),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {
                self.buses.other_exits.interrupted.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.buses.other_exits.interrupted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(VcpuExit::Shutdown) => {
                self.vm_exit.set(Outcome::Reset {
                    cause: "triple fault".to_owned(),
                });
            }
            Ok(VcpuExit::InternalError) => {
                let suberror = super::raw::internal_error(&mut self.fd);
                self.set_fault(&format!("KVM internal error, suberror {suberror}"));
            }
            Ok(VcpuExit::FailEntry(reason, _)) => {
                self.set_fault(&format!("KVM can't enter the guest, hardware reason {reason:#x}"));
            }
            Ok(exit) => {
                self.buses.other_exits.unexpected.fetch_add(1, Ordering::Relaxed);
                let exit = format!("{exit:?}");
                self.set_fault(&format!("unexpected KVM exit {exit}"));
            }
            Err(error) => self.set_fault(&format!("KVM_RUN: {error}")),
        }
        if self.vm_exit.is_set() {
            State::Finished
        } else {
            State::Running
        }
    }

    /// Ends the VM with a fault that names this vCPU, `reason` and the instruction pointer.
    fn set_fault(&self, reason: &str) {
        let location = self
            .fd
            .get_regs()
            .map_or_else(|_| String::new(), |regs| format!(" at RIP {:#x}", regs.rip));
        self.vm_exit
            .set_fault(format!("vCPU {}", self.index), format_args!("{reason}{location}"));
    }
}

fn confine(sync: &StartSync, confinement: &Confinement) -> State {
    let result = confinement.confine(&VCPU);
    let next = if result.is_ok() {
        State::WaitingForStart
    } else {
        State::Finished
    };
    match sync.confined.send(result) {
        Ok(()) => next,
        // The main thread has given up building the machine.
        Err(_) => State::Finished,
    }
}

fn wait_for_start(sync: &StartSync) -> State {
    match sync.start.recv() {
        Ok(()) => State::Running,
        Err(_) => State::Finished,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::devices::power::{PORTS, PowerRegisters, RESET, RESET_VALUE};
    use crate::machine::layout;
    use std::sync::Mutex;
    use vm_memory::{Bytes as _, GuestAddress};

    /// Runs `code` on the first vCPU of a guest until the VM ends. The guest has the power registers and, at
    /// port 0x80, a device that panics.
    fn outcome(code: &[u8]) -> Option<(Outcome, BTreeMap<String, u64>)> {
        outcome_with(code, Recording::default())
    }

    /// The same, with `recording` at the ports from 0x90 on.
    fn outcome_with(code: &[u8], recording: Recording) -> Option<(Outcome, BTreeMap<String, u64>)> {
        let vm = super::super::tests::vm()?;
        let memory = crate::machine::memory::allocate(2 << 20).unwrap();
        memory.write_slice(code, GuestAddress(0x10_0000)).unwrap();
        let no_initrd = crate::boot::initrd::Location { address: 0, bytes: 0 };
        crate::boot::zero_page::write(&memory, "", no_initrd, 0).unwrap();
        vm.set_memory(&memory).unwrap();
        let fd = vm.create_vcpu(0).unwrap();
        let cpuid = super::super::cpuid::for_vcpu(&vm.supported_cpuid().unwrap(), 0, 1).unwrap();
        fd.set_cpuid2(&cpuid).unwrap();
        super::super::registers::set_entry(&fd, 0x10_0000).unwrap();
        let vm_exit = VmExit::new().unwrap();
        let buses = Arc::new(buses(&vm_exit, recording));
        let (confined, is_confined) = std::sync::mpsc::channel();
        let (start, started) = std::sync::mpsc::channel();
        Vcpu {
            index: 0,
            fd,
            buses: Arc::clone(&buses),
            vm_exit: vm_exit.clone(),
        }
        .spawn(
            StartSync {
                confined,
                start: started,
            },
            Confinement::none(),
        )
        .unwrap();
        is_confined.recv().unwrap().unwrap();
        assert!(!vm_exit.is_set());
        start.send(()).unwrap();
        let mut fds = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&vm_exit),
            nix::poll::PollFlags::POLLIN,
        )];
        assert_eq!(
            nix::poll::poll(&mut fds, 20_000u16).unwrap(),
            1,
            "the guest did not end"
        );
        let mut counts = BTreeMap::new();
        buses.ports.add_counts(&mut counts);
        Some((vm_exit.outcome().unwrap(), counts))
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

    fn buses(vm_exit: &VmExit, recording: Recording) -> IoBuses {
        let mut ports = Bus::new("port");
        let power = Box::new(PowerRegisters::new(vm_exit.clone()));
        ports
            .insert("power", u64::from(layout::POWER_PORT), u64::from(PORTS), power)
            .unwrap();
        ports.insert("panicking", 0x80, 1, Box::new(Panicking)).unwrap();
        ports.insert("recording", 0x90, 4, Box::new(recording)).unwrap();
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
        let Some((outcome, counts)) = outcome(&write_port(layout::POWER_PORT + RESET, RESET_VALUE)) else {
            return;
        };
        assert_eq!(
            outcome,
            Outcome::Reset {
                cause: "ACPI reset register".to_owned()
            }
        );
        assert_eq!(counts["port write power"], 1);
    }

    #[test]
    fn a_triple_fault_is_a_reset() {
        // ud2 without an IDT.
        let Some((outcome, _)) = outcome(&[0x0f, 0x0b]) else {
            return;
        };
        // On some hosts KVM reports an internal error instead.
        assert!(
            matches!(outcome, Outcome::Reset { .. } | Outcome::Fault { .. }),
            "{outcome:?}"
        );
    }

    #[test]
    fn a_panic_of_the_thread_is_a_fault_with_its_message() {
        let Some((outcome, _)) = outcome(&write_port(0x80, 0)) else {
            return;
        };
        assert_eq!(
            outcome,
            Outcome::Fault {
                part: "vCPU 0".to_owned(),
                error: "its thread panicked: the message with offset 0".to_owned()
            }
        );
    }

    #[test]
    fn a_string_instruction_is_split_into_accesses_of_its_size() {
        let recording = Recording::default();
        let buses = buses(&VmExit::new().unwrap(), recording.clone());
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
        let recording = Recording::default();
        let Some((outcome, _)) = outcome_with(&code, recording.clone()) else {
            return;
        };
        assert!(matches!(outcome, Outcome::Reset { .. }), "{outcome:?}");
        let expected: [&[u8]; 8] = [&[1], &[2], &[3], &[4], &[1], &[2], &[3], &[4]];
        assert_eq!(recording.accesses(), expected);
    }
}
