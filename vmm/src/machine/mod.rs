//! One microVM, built step by step. [`build`] is the list of steps, each a call that takes what the steps before
//! have made; [`Machine`] is the result, ready to run. Called by `main` after the jail is closed.
//!
//! The main thread keeps the machine and waits ([`crate::watch`]); vCPUs and device workers have threads of their own.

pub mod ending;
mod error;
pub mod layout;
pub mod memory;
mod virtio_devices;

use std::collections::BTreeMap;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use self::ending::Ending;
pub use self::error::{Error, Failure};
pub use self::virtio_devices::Sources;
use crate::acpi;
use crate::boot::{self, initrd, kernel};
use crate::bus::Bus;
use crate::config::{Config, ConsoleTo};
use crate::devices::console::Console;
use crate::devices::panic::PanicPort;
use crate::devices::pci::{self, EmptyPci};
use crate::devices::power::{self, Power};
use crate::devices::serial::{self, Input, Line};
use crate::jail::Confinement;
use crate::kvm::stats::Statistics;
use crate::kvm::vcpu::{Board, Gate, OtherExits, Vcpu};
use crate::kvm::{Vm, cpuid, registers};
use crate::virtio::Memory;

/// What is already open.
pub struct Resources {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// The guest kernel.
    pub kernel: File,
    /// The guest's initramfs.
    pub initrd: File,
    /// The console's ring.
    pub console: Option<File>,
    /// What the virtio devices work on.
    pub sources: Sources,
}

/// A VM whose vCPUs wait for [`Machine::run`]. It lives until the process ends: guest memory and threads with it.
pub struct Machine {
    ending: Ending,
    console: Console,
    input: Input,
    /// Never dropped, as it owns the devices: dropping a device joins its worker's thread, which may hang in a system
    /// call to a broken host file system.
    board: ManuallyDrop<Arc<Board>>,
    statistics: Vec<Statistics>,
    gates: Vec<Sender<()>>,
    // Kept because KVM and the devices use them.
    _vm: Vm,
    _memory: Arc<Memory>,
}

/// Where kernel and initramfs are.
struct Images {
    kernel: kernel::Image,
    initrd_bytes: u64,
}

/// Builds the machine that `config` describes from `resources`. `done` hears of each step.
///
/// # Errors
/// [`Failure`] with the step that failed.
pub fn build(
    config: &Config,
    resources: Resources,
    confinement: &Confinement,
    mut done: impl FnMut(&'static str),
) -> Result<Machine, Failure> {
    let Resources {
        kvm,
        kernel,
        initrd,
        console,
        sources,
    } = resources;
    let mut step = |name: &'static str| {
        done(name);
    };
    let images = images(config, &kernel, &initrd).map_err(Failure::at("read guest images"))?;
    let memory = Arc::new(memory::make(config.memory_bytes()).map_err(Failure::at("make guest memory"))?);
    let vm = vm(kvm, &memory).map_err(Failure::at("make virtual machine"))?;
    step("virtual machine made");
    let placed = load(&images, &kernel, &initrd, &memory).map_err(Failure::at("load guest"))?;
    step("guest loaded");
    let ending = Ending::new().map_err(Failure::at("make devices"))?;
    let console = Console::new(console, config.console);
    let (mut board, input) = board(&vm, &ending, &console).map_err(Failure::at("make devices"))?;
    let env = virtio_devices::env(confinement, &ending);
    let devices = virtio_devices::make(&env, sources).map_err(Failure::at("make virtio devices"))?;
    let count = virtio_devices::plug(devices, &vm, &memory, &mut board)
        .map_err(Failure::at("plug virtio devices"))?;
    step("devices made");
    describe(config, &memory, placed, count).map_err(Failure::at("describe machine to guest"))?;
    let board = Arc::new(board);
    let vcpus = VcpuPlan {
        config,
        vm: &vm,
        board: &board,
        ending: &ending,
        entry: images.kernel.entry,
    };
    let (gates, statistics) = vcpus.spawn(confinement).map_err(Failure::at("make vCPUs"))?;
    step("vCPUs made");
    Ok(Machine {
        ending,
        console,
        input,
        board: ManuallyDrop::new(board),
        statistics,
        gates,
        _vm: vm,
        _memory: memory,
    })
}

impl Machine {
    /// Lets the guest run.
    pub fn run(&mut self) {
        for gate in self.gates.drain(..) {
            if gate.send(()).is_err() {
                self.ending.fault("vCPU", "its thread ended before the guest ran");
            }
        }
    }

    /// How and when the guest ends.
    #[must_use]
    pub fn ending(&self) -> &Ending {
        &self.ending
    }

    /// The console's receiving side.
    #[must_use]
    pub fn input(&self) -> &Input {
        &self.input
    }

    /// Exits since the guest's start, by kind: "port …" and "mmio …" by device as we saw them, "kvm …" as KVM
    /// counted all of them.
    #[must_use]
    pub fn exits(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        self.board.ports.count(&mut counts);
        self.board.mmio.count(&mut counts);
        self.board.other.count(&mut counts);
        for statistics in &self.statistics {
            if let Err(error) = statistics.count(&mut counts) {
                eprintln!("nacre-vmm: KVM's statistics: {error}");
            }
        }
        counts
    }

    /// Writes out what the console holds back.
    pub fn finish_console(&self) {
        self.console.finish();
    }
}

fn images(config: &Config, kernel: &File, initrd: &File) -> Result<Images, Error> {
    let image = kernel::inspect(kernel).map_err(boot::Error::from)?;
    let initrd_bytes = initrd
        .metadata()
        .map_err(|error| boot::Error::Initrd(error.into()))?
        .len();
    boot::check_room(config.memory_mib, &image, initrd_bytes)?;
    Ok(Images {
        kernel: image,
        initrd_bytes,
    })
}

fn vm(kvm: OwnedFd, memory: &Memory) -> Result<Vm, Error> {
    let vm = Vm::new(kvm)?;
    vm.set_memory(memory)?;
    Ok(vm)
}

fn load(images: &Images, kernel: &File, initrd: &File, memory: &Memory) -> Result<initrd::Placed, Error> {
    kernel::load(&images.kernel, kernel, memory).map_err(boot::Error::from)?;
    let placed = initrd::load(initrd, images.initrd_bytes, memory, images.kernel.end);
    Ok(placed.map_err(boot::Error::from)?)
}

fn board(vm: &Vm, ending: &Ending, console: &Console) -> Result<(Board, Input), Error> {
    let mut ports = Bus::new("port");
    let line = Line(vm.line(layout::SERIAL_GSI)?);
    let (serial, input) = serial::make(line, console.clone());
    ports.insert("serial", u64::from(layout::SERIAL_PORT), 8, Box::new(serial))?;
    ports.insert(
        "pvpanic",
        u64::from(layout::PANIC_PORT),
        1,
        Box::new(PanicPort::new(ending.clone())),
    )?;
    ports.insert(
        "pci",
        u64::from(layout::PCI_PORT),
        u64::from(pci::PORTS),
        Box::new(EmptyPci::default()),
    )?;
    let power = Power::new(ending.clone());
    ports.insert(
        "power",
        u64::from(layout::POWER_PORT),
        u64::from(power::PORTS),
        Box::new(power),
    )?;
    Ok((
        Board {
            ports,
            mmio: Bus::new("mmio"),
            other: OtherExits::default(),
        },
        input,
    ))
}

fn describe(
    config: &Config,
    memory: &Memory,
    initrd: initrd::Placed,
    virtio_devices: u8,
) -> Result<(), Error> {
    let mut generation_id = [0; 16];
    rustix::rand::getrandom(&mut generation_id, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::Entropy(error.into()))?;
    acpi::make(&acpi::Machine {
        vcpus: config.vcpus,
        virtio_devices,
        serial: config.console == ConsoleTo::Terminal,
        generation_id,
    })
    .write(memory)?;
    let line = boot::cmdline::compose(config).map_err(boot::Error::from)?;
    boot::zero_page::write(memory, &line, initrd, layout::ACPI)?;
    Ok(())
}

struct VcpuPlan<'a> {
    config: &'a Config,
    vm: &'a Vm,
    board: &'a Arc<Board>,
    ending: &'a Ending,
    entry: u64,
}

impl VcpuPlan<'_> {
    /// Makes all vCPUs with their threads, which are confined when this returns.
    fn spawn(&self, confinement: &Confinement) -> Result<(Vec<Sender<()>>, Vec<Statistics>), Error> {
        let supported = self.vm.supported_cpuid()?;
        let (ready, readiness) = channel();
        let (mut gates, mut statistics) = (Vec::new(), Vec::new());
        for index in 0..self.config.vcpus {
            let fd = self.vm.vcpu(index)?;
            let cpuid = cpuid::for_vcpu(&supported, index, self.config.vcpus)?;
            fd.set_cpuid2(&cpuid).map_err(crate::kvm::call("setting CPUID"))?;
            registers::set_msrs(&fd)?;
            if index == 0 {
                registers::set_entry(&fd, self.entry)?;
            }
            statistics.extend(Statistics::open(&fd));
            let (gate, open) = channel();
            gates.push(gate);
            let vcpu = Vcpu {
                index,
                fd,
                board: Arc::clone(self.board),
                ending: self.ending.clone(),
            };
            vcpu.spawn(
                Gate {
                    ready: ready.clone(),
                    open,
                },
                confinement.clone(),
            )
            .map_err(Error::Thread)?;
        }
        drop(ready);
        for _ in 0..self.config.vcpus {
            readiness
                .recv()
                .map_err(|_| Error::Thread(std::io::ErrorKind::BrokenPipe.into()))??;
        }
        Ok((gates, statistics))
    }
}
