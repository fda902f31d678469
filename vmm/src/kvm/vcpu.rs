//! A thread that runs one vCPU. Made by the machine; it carries accesses to the buses, counts exits, and says how the
//! guest ended. It never touches a virtqueue and never waits for anything but the guest.
//!
//! ```text
//! Confining ──▶ Waiting ──▶ Running ⟲ ──▶ (ended)
//!     └──────────────────────────────────▶ refused
//! ```
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use kvm_ioctls::{VcpuExit, VcpuFd};
use nacre_protocol::control::Outcome;

use crate::bus::Bus;
use crate::jail::{self, Confinement, ThreadKind};
use crate::machine::ending::Ending;

/// What vCPUs and devices share, made before the first of them runs.
pub struct Board {
    /// Ports.
    pub ports: Bus,
    /// Memory addresses that are no memory.
    pub mmio: Bus,
    /// Exits that no bus counts.
    pub other: OtherExits,
}

/// Counters of exits that are no access.
#[derive(Debug, Default)]
pub struct OtherExits {
    interrupted: AtomicU64,
    other: AtomicU64,
}

impl OtherExits {
    /// Adds the counters to `counts`.
    pub fn count(&self, counts: &mut BTreeMap<String, u64>) {
        for (name, counter) in [("interrupted", &self.interrupted), ("other", &self.other)] {
            let count = counter.load(Ordering::Relaxed);
            if count > 0 {
                counts.insert(name.to_owned(), count);
            }
        }
    }
}

/// A vCPU before its thread runs.
pub struct Vcpu {
    /// Its number, from 0.
    pub index: u8,
    /// KVM's descriptor, with CPUID and registers set.
    pub fd: VcpuFd,
    /// What it shares.
    pub board: Arc<Board>,
    /// How it says that the guest ended.
    pub ending: Ending,
}

/// The two ends that tie a vCPU's thread to the machine before the guest runs.
pub struct Gate {
    /// The thread says here that it is confined, or why not.
    pub ready: Sender<Result<(), jail::Error>>,
    /// It waits here until the guest is to run; a dropped sender means that it never will.
    pub open: Receiver<()>,
}

enum State {
    Confining,
    Waiting,
    Running,
    Ended,
}

impl Vcpu {
    /// Makes the thread. It runs no guest instruction until the gate opens.
    ///
    /// # Errors
    /// Where no thread can be made.
    pub fn spawn(mut self, gate: Gate, confinement: Confinement) -> io::Result<()> {
        std::thread::Builder::new()
            .name(format!("vcpu{}", self.index))
            .spawn(move || {
                let (index, ending) = (self.index, self.ending.clone());
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.live(&gate, &confinement))) {
                    let reason = panic
                        .downcast_ref::<&str>()
                        .copied()
                        .unwrap_or("see standard error");
                    ending.fault(
                        format!("vCPU {index}"),
                        format_args!("its thread panicked: {reason}"),
                    );
                }
            })?;
        Ok(())
    }

    fn live(&mut self, gate: &Gate, confinement: &Confinement) {
        let mut state = State::Confining;
        loop {
            state = match state {
                State::Confining => confine(gate, confinement),
                State::Waiting => wait(gate),
                State::Running => self.run(),
                State::Ended => return,
            };
        }
    }

    /// Runs the guest until its next exit.
    fn run(&mut self) -> State {
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => self.board.ports.read(u64::from(port), data),
            Ok(VcpuExit::IoOut(port, data)) => self.board.ports.write(u64::from(port), data),
            Ok(VcpuExit::MmioRead(address, data)) => self.board.mmio.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => self.board.mmio.write(address, data),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {
                self.board.other.interrupted.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.board.other.interrupted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(VcpuExit::Shutdown) => {
                self.ending.end(Outcome::Reset {
                    cause: "triple fault".to_owned(),
                });
            }
            Ok(VcpuExit::InternalError) => {
                let suberror = super::raw::internal_error(&mut self.fd);
                self.fault(&format!("KVM can't go on (internal error {suberror})"));
            }
            Ok(VcpuExit::FailEntry(reason, _)) => {
                self.fault(&format!(
                    "KVM can't enter the guest (hardware reason {reason:#x})"
                ));
            }
            Ok(exit) => {
                self.board.other.other.fetch_add(1, Ordering::Relaxed);
                let exit = format!("{exit:?}");
                self.fault(&format!("KVM gave an exit that no guest of ours causes: {exit}"));
            }
            Err(error) => self.fault(&format!("KVM_RUN: {error}")),
        }
        if self.ending.has_come() {
            State::Ended
        } else {
            State::Running
        }
    }

    fn fault(&self, reason: &str) {
        let place = self
            .fd
            .get_regs()
            .map_or_else(|_| String::new(), |regs| format!(" at {:#x}", regs.rip));
        self.ending
            .fault(format!("vCPU {}", self.index), format_args!("{reason}{place}"));
    }
}

fn confine(gate: &Gate, confinement: &Confinement) -> State {
    let result = confinement.confine(ThreadKind::Vcpu);
    let state = if result.is_ok() {
        State::Waiting
    } else {
        State::Ended
    };
    match gate.ready.send(result) {
        Ok(()) => state,
        // The machine is being given up.
        Err(_) => State::Ended,
    }
}

fn wait(gate: &Gate) -> State {
    match gate.open.recv() {
        Ok(()) => State::Running,
        Err(_) => State::Ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::power::{Power, RESET, RESET_VALUE};
    use crate::machine::layout;
    use vm_memory::{Bytes as _, GuestAddress};

    /// Runs `code` as the first vCPU of a guest until it ends.
    fn outcome(code: &[u8]) -> Option<(Outcome, BTreeMap<String, u64>)> {
        let vm = super::super::tests::vm()?;
        let memory = crate::machine::memory::make(2 << 20).unwrap();
        memory.write_slice(code, GuestAddress(0x10_0000)).unwrap();
        let nothing = crate::boot::initrd::Placed { address: 0, bytes: 0 };
        crate::boot::zero_page::write(&memory, "", nothing, 0).unwrap();
        vm.set_memory(&memory).unwrap();
        let fd = vm.vcpu(0).unwrap();
        let cpuid = super::super::cpuid::for_vcpu(&vm.supported_cpuid().unwrap(), 0, 1).unwrap();
        fd.set_cpuid2(&cpuid).unwrap();
        super::super::registers::set_entry(&fd, 0x10_0000).unwrap();
        let ending = Ending::new().unwrap();
        let mut board = Board {
            ports: Bus::new("port"),
            mmio: Bus::new("mmio"),
            other: OtherExits::default(),
        };
        let power = Box::new(Power::new(ending.clone()));
        board
            .ports
            .insert("power", u64::from(layout::POWER_PORT), 3, power)
            .unwrap();
        let board = Arc::new(board);
        let (ready, readiness) = std::sync::mpsc::channel();
        let (open, opened) = std::sync::mpsc::channel();
        Vcpu {
            index: 0,
            fd,
            board: Arc::clone(&board),
            ending: ending.clone(),
        }
        .spawn(Gate { ready, open: opened }, Confinement::none())
        .unwrap();
        readiness.recv().unwrap().unwrap();
        assert!(!ending.has_come());
        open.send(()).unwrap();
        let mut fds = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&ending),
            nix::poll::PollFlags::POLLIN,
        )];
        assert_eq!(
            nix::poll::poll(&mut fds, 20_000u16).unwrap(),
            1,
            "the guest did not end"
        );
        let mut counts = BTreeMap::new();
        board.ports.count(&mut counts);
        Some((ending.outcome().unwrap(), counts))
    }

    #[test]
    fn a_guest_that_writes_the_reset_register_has_reset_itself() {
        let port = (layout::POWER_PORT + RESET).to_le_bytes();
        // mov al, VALUE; mov dx, PORT; out dx, al; hlt
        let code = [0xb0, RESET_VALUE, 0x66, 0xba, port[0], port[1], 0xee, 0xf4];
        let Some((outcome, counts)) = outcome(&code) else {
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
    fn a_guest_whose_faults_have_no_handler_has_reset_itself() {
        // ud2 without an interrupt descriptor table.
        let Some((outcome, _)) = outcome(&[0x0f, 0x0b]) else {
            return;
        };
        assert!(
            matches!(outcome, Outcome::Reset { .. } | Outcome::Fault { .. }),
            "{outcome:?}"
        );
    }
}
