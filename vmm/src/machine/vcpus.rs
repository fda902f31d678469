//! Creates all vCPUs with their threads, starts, pauses and resumes them together. Called by the machine;
//! what a thread does is in [`crate::kvm::vcpu`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use super::Error;
use super::pause::{Pausable, PauseError};
use super::saved::SaveError;
use crate::jail::Confinement;
use crate::jail::calls::{SAVED_VCPU, VCPU};
use crate::kvm::stats::Statistics;
use crate::kvm::vcpu::orders::VcpuThread;
use crate::kvm::vcpu::{IoBuses, Vcpu};
use crate::kvm::{Vm, cpuid, error_at, registers};
use crate::snapshot::host::Host;
use crate::snapshot::state::MachineState;
use crate::snapshot::vcpu::{VcpuState, set_all};
use crate::vm_exit::VmExit;

/// How long a pause waits for the vCPUs. A vCPU leaves the guest within microseconds; it takes longer only if
/// it waits for a device's worker, as it does when the guest resets a device.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the vCPUs are created from.
pub(super) struct Plan<'a> {
    /// Number of vCPUs, with those that are offline at boot.
    pub(super) count: u8,
    pub(super) start: Start<'a>,
    /// vCPU 0, if it exists already.
    pub(super) first: Option<VcpuFd>,
    /// Their state is to be saved later.
    pub(super) can_be_saved: bool,
    pub(super) vm: &'a Vm,
    pub(super) buses: &'a Arc<IoBuses>,
    pub(super) vm_exit: &'a VmExit,
}

/// The state of the vCPUs before the guest's first instruction in this process.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// vCPU 0 starts at this physical address, the kernel's 64-bit entry point. The others wait for it.
    Entry(u64),
    /// That of a snapshot, which has all vCPUs.
    Saved(&'a MachineState),
}

/// What must be known to save the vCPUs, read before the threads are confined.
struct Saving {
    host: Host,
    /// The MSRs that KVM saves.
    msrs: Vec<u32>,
}

/// The main thread's handles on the vCPU threads.
pub(super) struct Vcpus {
    threads: Vec<VcpuThread>,
    statistics: Vec<Statistics>,
    pause_timeout: Duration,
    saving: Option<Saving>,
}

impl Plan<'_> {
    /// Creates the vCPUs and their threads; returns once all of these are confined. They are paused.
    pub(super) fn spawn(mut self, confinement: &Confinement) -> Result<Vcpus, Error> {
        let (confined, all_confined) = channel();
        let all = self.create()?;
        let saving = all.first().map(|first| self.prepare_saving(first)).transpose()?;
        self.initialize(&all)?;
        let (mut threads, mut statistics) = (Vec::new(), Vec::new());
        for (index, fd) in (0..).zip(all) {
            statistics.extend(Statistics::open(&fd));
            let vcpu = Vcpu {
                index,
                fd,
                profile: if self.can_be_saved { &SAVED_VCPU } else { &VCPU },
                buses: Arc::clone(self.buses),
                vm_exit: self.vm_exit.clone(),
            };
            let thread = vcpu.spawn(confined.clone(), confinement.clone());
            threads.push(thread.map_err(Error::Thread)?);
        }
        drop(confined);
        for _ in 0..self.count {
            all_confined
                .recv()
                .map_err(|_| Error::Thread(io::ErrorKind::BrokenPipe.into()))??;
        }
        Ok(Vcpus {
            threads,
            statistics,
            pause_timeout: PAUSE_TIMEOUT,
            saving: saving.flatten(),
        })
    }

    /// All vCPUs with their CPUID entries.
    fn create(&mut self) -> Result<Vec<VcpuFd>, Error> {
        let supported = self.vm.supported_cpuid();
        let mut first = self.first.take();
        let mut all = Vec::new();
        for index in 0..self.count {
            let fd = match first.take() {
                Some(first) => first,
                None => self.vm.create_vcpu(index)?,
            };
            let cpuid = cpuid::for_vcpu(supported, index, self.count)?;
            fd.set_cpuid2(&cpuid).map_err(error_at("setting CPUID"))?;
            all.push(fd);
        }
        Ok(all)
    }

    /// Describes this host for a snapshot, if there is to be one. `first` is vCPU 0.
    fn prepare_saving(&self, first: &VcpuFd) -> Result<Option<Saving>, Error> {
        if !self.can_be_saved {
            return Ok(None);
        }
        let host = Host::of(self.vm, first, self.count)?;
        let msrs = self.vm.msr_indices()?;
        Ok(Some(Saving { host, msrs }))
    }

    /// Sets the registers of the vCPUs.
    fn initialize(&self, all: &[VcpuFd]) -> Result<(), Error> {
        // Also in a restored VM: IA32_MTRR_DEF_TYPE is not among the MSRs that KVM lists, and no snapshot has it.
        all.iter().try_for_each(registers::set_msrs)?;
        match self.start {
            Start::Entry(entry) => {
                if let Some(first) = all.first() {
                    registers::set_entry(first, entry)?;
                }
            }
            Start::Saved(saved) => {
                set_all(&saved.vcpus, all, self.vm.xsave_bytes())?;
                for vcpu in all {
                    // Fails if the guest does not use kvm-clock. Its watchdogs are not to take the time for
                    // which it did not exist for a lockup.
                    let _ = vcpu.kvmclock_ctrl();
                }
            }
        }
        Ok(())
    }
}

impl Vcpus {
    /// Adds KVM's counters, summed over all vCPUs, to `counts`.
    pub(super) fn add_kvm_counts(&self, counts: &mut BTreeMap<String, u64>) {
        for statistics in &self.statistics {
            if let Err(error) = statistics.add_counts(counts) {
                eprintln!("nacre-vmm: reading KVM's statistics: {error}");
            }
        }
    }
}

impl Vcpus {
    /// The host, and the states of the vCPUs, which must be paused, by number.
    pub(super) fn save(&self) -> Result<(Host, Vec<VcpuState>), SaveError> {
        let Saving { host, msrs } = self.saving.as_ref().ok_or(SaveError::NotPrepared)?;
        let deadline = Instant::now() + self.pause_timeout;
        let mut states = Vec::with_capacity(self.threads.len());
        for thread in &self.threads {
            let index = thread.index();
            let failed = |error| match error {
                RecvTimeoutError::Timeout => PauseError::VcpuRuns {
                    index,
                    timeout: self.pause_timeout,
                },
                RecvTimeoutError::Disconnected => PauseError::VcpuExited(index),
            };
            let (answer, state) = channel();
            let msrs = msrs.clone();
            let inspect = move |vcpu: &VcpuFd| {
                // Fails if nobody waits any more.
                let _ = answer.send(VcpuState::read(vcpu, &msrs));
            };
            let sent = thread.inspect(Box::new(inspect));
            sent.map_err(|_| PauseError::VcpuExited(index))?;
            let left = deadline.saturating_duration_since(Instant::now());
            states.push(state.recv_timeout(left).map_err(failed)??);
        }
        Ok((host.clone(), states))
    }
}

impl Pausable for Vcpus {
    /// Pauses all vCPUs. If this fails, some may be paused.
    fn pause(&mut self) -> Result<(), PauseError> {
        let deadline = Instant::now() + self.pause_timeout;
        let (answer, paused) = channel();
        let mut running = BTreeSet::new();
        for thread in &self.threads {
            let index = thread.index();
            let sent = thread.pause(answer.clone());
            sent.map_err(|_| PauseError::VcpuExited(index))?;
            running.insert(index);
        }
        drop(answer);
        while let Some(first) = running.first().copied() {
            let left = deadline.saturating_duration_since(Instant::now());
            match paused.recv_timeout(left) {
                Ok(index) => running.remove(&index),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(PauseError::VcpuRuns {
                        index: first,
                        timeout: self.pause_timeout,
                    });
                }
                Err(RecvTimeoutError::Disconnected) => return Err(PauseError::VcpuExited(first)),
            };
        }
        Ok(())
    }

    /// Lets every thread enter the guest, also after a pause that has failed.
    fn resume(&mut self) -> Result<(), PauseError> {
        for thread in &self.threads {
            thread.run().map_err(|_| PauseError::VcpuExited(thread.index()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::bus::{Bus, BusDevice};
    use crate::kvm::vcpu::OtherExits;
    use crate::memory::Memory;

    const ENTRY: u64 = 0x10_0000;
    /// Where the guest counts.
    const DATA: GuestAddress = GuestAddress(0x10_1000);

    /// A device whose first read waits until the test lets it go on; later ones don't wait.
    struct Slow(Receiver<()>);

    impl BusDevice for Slow {
        fn read(&mut self, _offset: u64, _data: &mut [u8]) {
            let _ = self.0.recv();
        }

        fn write(&mut self, _offset: u64, _data: &[u8]) {}
    }

    /// Two vCPUs. The first executes `code`, the second waits to be started. The port 0x90 is a [`Slow`].
    fn vcpus(code: &[u8], slow: Receiver<()>) -> Option<(Vcpus, Memory, VmExit, Vm)> {
        let vm = crate::kvm::tests::vm()?;
        let memory = crate::memory::allocate(2 << 20).unwrap();
        memory.write_slice(code, GuestAddress(ENTRY)).unwrap();
        let no_initrd = crate::boot::initrd::Location { address: 0, bytes: 0 };
        crate::boot::zero_page::write(&memory, "", no_initrd, 0, [0; 32]).unwrap();
        vm.set_memory(&memory).unwrap();
        let vm_exit = VmExit::new().unwrap();
        let mut ports = Bus::new("port");
        ports.insert("slow", 0x90, 1, Box::new(Slow(slow))).unwrap();
        let buses = Arc::new(IoBuses {
            ports,
            mmio: Bus::new("mmio"),
            other_exits: OtherExits::default(),
        });
        let plan = Plan {
            count: 2,
            start: Start::Entry(ENTRY),
            first: None,
            can_be_saved: true,
            vm: &vm,
            buses: &buses,
            vm_exit: &vm_exit,
        };
        let vcpus = plan.spawn(&Confinement::none()).unwrap();
        Some((vcpus, memory, vm_exit, vm))
    }

    /// Waits until the guest has changed its counter from `before`.
    fn wait_for_count(memory: &Memory, vm_exit: &VmExit, before: u64) {
        use std::os::fd::AsFd as _;
        let deadline = Instant::now() + Duration::from_secs(20);
        while memory.read_obj::<u64>(DATA).unwrap() == before {
            let mut fds = [nix::poll::PollFd::new(
                vm_exit.as_fd(),
                nix::poll::PollFlags::POLLIN,
            )];
            assert_eq!(
                nix::poll::poll(&mut fds, 1u16).unwrap(),
                0,
                "{:?}",
                vm_exit.outcome()
            );
            assert!(Instant::now() < deadline, "the guest does not count");
        }
    }

    #[test]
    fn a_vcpu_that_waits_for_a_device_is_named_and_runs_on_later() {
        // inc qword [0x101000]; mov edx, 0x90; in al, dx; jmp to the start
        let code = b"\x48\xff\x04\x25\x00\x10\x10\x00\xba\x90\x00\x00\x00\xec\xeb\xf0";
        let (release, slow) = channel();
        let Some((mut vcpus, memory, vm_exit, _vm)) = vcpus(code, slow) else {
            return;
        };
        vcpus.resume().unwrap();
        wait_for_count(&memory, &vm_exit, 0);
        vcpus.pause_timeout = Duration::from_millis(50);
        let error = vcpus.pause().unwrap_err().to_string();
        assert_eq!(error, "vCPU 0 has not paused within 50ms");
        // As the machine undoes it.
        vcpus.resume().unwrap();
        drop(release);
        wait_for_count(&memory, &vm_exit, 1);
        vcpus.pause_timeout = PAUSE_TIMEOUT;
        vcpus.pause().unwrap();
        let counter = memory.read_obj(DATA).unwrap();
        vcpus.pause().unwrap();
        assert_eq!(memory.read_obj::<u64>(DATA).unwrap(), counter);
        vcpus.resume().unwrap();
        wait_for_count(&memory, &vm_exit, counter);
        vcpus.pause().unwrap();
    }

    #[test]
    fn a_vcpu_whose_thread_has_exited_is_named() {
        // inc qword [0x101000]; jmp to the start
        let code = b"\x48\xff\x04\x25\x00\x10\x10\x00\xeb\xf6";
        let Some((mut vcpus, memory, vm_exit, _vm)) = vcpus(code, channel().1) else {
            return;
        };
        vcpus.resume().unwrap();
        wait_for_count(&memory, &vm_exit, 0);
        vm_exit.set_fault("test", "ended");
        // The threads exit when they leave the guest.
        let error = vcpus.pause().unwrap_err();
        assert!(matches!(error, PauseError::VcpuExited(_)), "{error}");
    }

    #[test]
    fn paused_vcpus_are_saved_and_run_on() {
        // inc qword [0x101000]; jmp to the start
        let code = b"\x48\xff\x04\x25\x00\x10\x10\x00\xeb\xf6";
        let Some((mut vcpus, memory, vm_exit, _vm)) = vcpus(code, channel().1) else {
            return;
        };
        vcpus.resume().unwrap();
        wait_for_count(&memory, &vm_exit, 0);
        vcpus.pause().unwrap();
        let counter = memory.read_obj(DATA).unwrap();
        let (host, states) = vcpus.save().unwrap();
        assert_eq!(states.len(), 2);
        assert_eq!(vcpus.save().unwrap().0, host);
        assert_eq!(memory.read_obj::<u64>(DATA).unwrap(), counter);
        vcpus.resume().unwrap();
        wait_for_count(&memory, &vm_exit, counter);
        vcpus.pause().unwrap();
    }
}
