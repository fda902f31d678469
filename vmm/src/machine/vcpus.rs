//! Creates all vCPUs with their threads, and starts them together. Called by the machine's steps; what a
//! thread does is in [`crate::kvm::vcpu`].

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use super::Error;
use super::vm_exit::VmExit;
use crate::jail::Confinement;
use crate::kvm::stats::Statistics;
use crate::kvm::vcpu::{IoBuses, StartSync, Vcpu};
use crate::kvm::{Vm, cpuid, error_at, registers};

/// What the vCPUs are created from.
pub(super) struct Plan<'a> {
    /// Number of vCPUs.
    pub(super) count: u8,
    /// Physical address of the kernel's 64-bit entry point, where vCPU 0 starts.
    pub(super) entry: u64,
    pub(super) vm: &'a Vm,
    pub(super) buses: &'a Arc<IoBuses>,
    pub(super) vm_exit: &'a VmExit,
}

/// The main thread's handles on the vCPU threads.
pub(super) struct VcpuThreads {
    /// One per thread that waits to be started.
    start: Vec<Sender<()>>,
    statistics: Vec<Statistics>,
}

impl Plan<'_> {
    /// Creates the vCPUs and their threads; returns once all of these are confined and wait for the start.
    pub(super) fn spawn(&self, confinement: &Confinement) -> Result<VcpuThreads, Error> {
        let supported = self.vm.supported_cpuid()?;
        let (confined, all_confined) = channel();
        let (mut senders, mut statistics) = (Vec::new(), Vec::new());
        for index in 0..self.count {
            let fd = self.vm.create_vcpu(index)?;
            let cpuid = cpuid::for_vcpu(&supported, index, self.count)?;
            fd.set_cpuid2(&cpuid).map_err(error_at("setting CPUID"))?;
            registers::set_msrs(&fd)?;
            if index == 0 {
                registers::set_entry(&fd, self.entry)?;
            }
            statistics.extend(Statistics::open(&fd));
            let (sender, start) = channel();
            senders.push(sender);
            let vcpu = Vcpu {
                index,
                fd,
                buses: Arc::clone(self.buses),
                vm_exit: self.vm_exit.clone(),
            };
            let sync = StartSync {
                confined: confined.clone(),
                start,
            };
            vcpu.spawn(sync, confinement.clone()).map_err(Error::Thread)?;
        }
        drop(confined);
        for _ in 0..self.count {
            all_confined
                .recv()
                .map_err(|_| Error::Thread(io::ErrorKind::BrokenPipe.into()))??;
        }
        Ok(VcpuThreads {
            start: senders,
            statistics,
        })
    }
}

impl VcpuThreads {
    /// Lets every thread enter the guest. Ends the VM with a fault if a thread has exited.
    pub(super) fn start(&mut self, vm_exit: &VmExit) {
        for sender in self.start.drain(..) {
            if sender.send(()).is_err() {
                vm_exit.set_fault("vCPU", "its thread exited before the guest ran");
            }
        }
    }

    /// Adds KVM's counters, summed over all vCPUs, to `counts`.
    pub(super) fn add_kvm_counts(&self, counts: &mut BTreeMap<String, u64>) {
        for statistics in &self.statistics {
            if let Err(error) = statistics.add_counts(counts) {
                eprintln!("nacre-vmm: reading KVM's statistics: {error}");
            }
        }
    }
}
