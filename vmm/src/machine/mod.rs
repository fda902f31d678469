//! One microVM. [`build`] is the list of steps that create it, one call each; [`Machine`] is the result,
//! ready to run. Called once the jail is closed, by [`crate::shim_managed`] or the standalone mode.
//!
//! The main thread keeps the machine and waits in [`crate::main_loop`]. Each vCPU and each virtio device has
//! a thread.

mod assembly;
mod error;
mod io_devices;
mod pause;
mod plug;
pub mod restore;
mod saved;
mod vcpus;
mod virtio_devices;

use std::collections::BTreeMap;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use self::assembly::{Assembly, Parts};
pub use self::error::{Error, Failure};
pub use self::pause::PauseError;
use self::pause::{Pausable, RunState, pause_all, resume_all};
use self::plug::Plug;
pub use self::plug::{OnPlugged, PlugError};
pub use self::saved::SaveError;
use self::vcpus::Vcpus;
pub use self::virtio_devices::DeviceBuilder;
use self::virtio_devices::PciSlots;
use crate::acpi;
use crate::boot::{self, cmdline, initrd, kernel, zero_page};
use crate::config::{Config, ConsoleOutput};
use crate::devices::console::Console;
use crate::devices::generation_id::{self, GenerationId};
use crate::devices::io_apic::IoApic;
use crate::devices::pci::EmptyPorts;
use crate::devices::serial::SerialInput;
use crate::jail::Confinement;
use crate::kvm::Vm;
use crate::kvm::vcpu::IoBuses;
use crate::layout;
use crate::memory::{self, Memory};
use crate::snapshot::state::Size;
use crate::virtio::mem::Sizes;
use crate::vm_exit::{VmExit, borrow_eventfd};

/// Open files and devices that a machine is built from.
pub struct Resources {
    /// `/dev/kvm`, open for reading and writing.
    pub kvm: OwnedFd,
    /// The guest kernel (vmlinux).
    pub kernel: File,
    /// The guest's initramfs.
    pub initrd: File,
    /// The console's ring, [`nacre_protocol::console::RING_BYTES`] long.
    pub console_ring: Option<File>,
    /// The virtio devices, in the order in which the guest finds them.
    pub devices: Vec<DeviceBuilder>,
}

/// A VM whose vCPU threads wait for [`Machine::run`]. Its memory and threads exist until the process exits: a
/// vCPU thread is never ordered to exit, since the process ends by exit_group(2).
pub struct Machine {
    vm_exit: VmExit,
    console: Console,
    serial_input: SerialInput,
    io_apic: IoApic,
    pci_ports: EmptyPorts,
    generation_id: GenerationId,
    /// Never dropped, since it owns the devices: dropping a device joins its worker, which may hang in a
    /// system call to a broken host file system.
    buses: ManuallyDrop<Arc<IoBuses>>,
    vcpus: Vcpus,
    devices: PciSlots,
    plug: Option<Plug>,
    /// The devices that every VM has were added.
    has_common_devices: bool,
    state: RunState,
    size: Size,
    vm: Vm,
    /// All of guest memory. KVM and the devices use it.
    memory: Arc<Memory>,
    /// Written by each device that has taken memory that was added.
    memory_taken: Arc<EventFd>,
}

/// The kernel's headers and the initramfs's size.
struct Images {
    kernel: kernel::Image,
    initrd_bytes: u64,
}

/// Builds the machine that `config` describes from `resources`. Calls `on_step` with the name of each
/// finished step.
///
/// # Errors
/// [`Failure`] with the step that failed.
pub fn build(
    config: &Config,
    resources: Resources,
    confinement: &Confinement,
    mut on_step: impl FnMut(&'static str),
) -> Result<Machine, Failure> {
    let Resources {
        kvm,
        kernel,
        initrd,
        console_ring,
        devices,
    } = resources;
    let images = inspect_images(config, &kernel, &initrd).map_err(Failure::at("read guest images"))?;
    let memory = memory::allocate(config.memory_bytes()).map_err(Failure::at("allocate guest memory"))?;
    let memory = Arc::new(memory);
    let vm = assembly::create_vm(kvm, &memory).map_err(Failure::at("create virtual machine"))?;
    on_step("virtual machine created");

    let initrd = load_images(&images, &kernel, &initrd, &memory).map_err(Failure::at("load guest images"))?;
    on_step("guest loaded");

    let parts = Parts {
        config,
        console_ring,
        devices,
        confinement,
        serial: None,
    };
    let assembly = Assembly::create(vm, memory, parts)?;
    assembly
        .generation_id
        .write_random()
        .map_err(Failure::at("create devices"))?;
    on_step("devices created");

    write_boot_data(config, &assembly.memory, initrd).map_err(Failure::at("write boot data"))?;
    let start = vcpus::Start::Entry(images.kernel.entry);
    let vcpus = assembly.spawn_vcpus(config, start, None, confinement)?;
    on_step("vCPUs created");
    let size = Size {
        memory_mib: config.memory_mib,
        vcpus: config.vcpus,
        max_vcpus: config.max_vcpus,
    };
    Ok(assembly.complete(vcpus, RunState::NotStarted, size))
}

impl Machine {
    /// Starts the guest: lets all vCPU threads enter it. A guest that runs or is paused stays as it is. Ends the
    /// VM with a fault if a thread has exited.
    pub fn run(&mut self) {
        if self.state == RunState::NotStarted {
            self.state = RunState::Running;
            if let Err(error) = self.vcpus.resume() {
                self.vm_exit.set_fault("vCPU", error);
            }
        }
    }

    /// Starts the guest, or lets a restored one continue. Ends the VM with a fault if a thread has exited.
    pub fn start(&mut self) {
        self.run();
        if let Err(error) = self.resume() {
            self.vm_exit.set_fault("machine", error);
        }
    }

    /// Pauses the guest. When this returns, no vCPU runs it, no instruction that accesses a device is half
    /// done, and no device accesses guest memory, until [`Machine::resume`]. Has no effect on a paused VM.
    /// Takes less than a millisecond unless a device waits for the host; at most 5 s for the vCPUs and 10 s
    /// for each device.
    ///
    /// # Errors
    /// [`PauseError`] with the vCPU or the device that did not pause; the guest then runs on. Or the VM has
    /// ended, or was not started.
    pub fn pause(&mut self) -> Result<(), PauseError> {
        match self.state {
            RunState::NotStarted => return Err(PauseError::NotStarted),
            RunState::Paused => return Ok(()),
            RunState::Running if self.vm_exit.is_set() => return Err(PauseError::Ended),
            RunState::Running => {}
        }
        pause_all(&mut self.parts()).map_err(|error| error.unless(self.vm_exit.is_set()))?;
        self.state = RunState::Paused;
        Ok(())
    }

    /// Lets a paused guest run on. Has no effect on a VM that runs.
    ///
    /// # Errors
    /// [`PauseError::Ended`] if the VM has ended meanwhile, so that a thread has exited. Or the VM was not
    /// started.
    pub fn resume(&mut self) -> Result<(), PauseError> {
        match self.state {
            RunState::NotStarted => return Err(PauseError::NotStarted),
            RunState::Running => return Ok(()),
            RunState::Paused => {}
        }
        self.state = RunState::Running;
        resume_all(&mut self.parts()).map_err(|error| error.unless(self.vm_exit.is_set()))
    }

    /// Asks the guest to have `mib` MiB plugged in besides the memory at boot, a multiple of
    /// [`nacre_protocol::control::MEMORY_BLOCK_MIB`]. Calls `on_plugged` when the guest has been asked, perhaps
    /// from [`Machine::plug_on`]; a paused guest is asked when it runs on. Or with a [`PlugError`]: the size is out
    /// of range, the host has no memory, or a device has not taken it within 10 s. The guest then keeps what it
    /// has, and this may be called again.
    pub fn plug_memory(&mut self, mib: u32, on_plugged: OnPlugged) {
        match &mut self.plug {
            Some(plug) => {
                plug.request(mib, &self.memory, &self.devices, on_plugged);
            }
            None => on_plugged(Err(PlugError::NoDevice)),
        }
    }

    /// Readable when [`Machine::plug_on`] is to be called.
    #[must_use]
    pub fn memory_taken(&self) -> BorrowedFd<'_> {
        borrow_eventfd(&self.memory_taken)
    }

    /// When [`Machine::plug_on`] is to be called at the latest.
    #[must_use]
    pub fn plug_deadline(&self) -> Option<Instant> {
        self.plug.as_ref()?.until()
    }

    /// Goes on with the request of [`Machine::plug_memory`] that waits for devices.
    pub fn plug_on(&mut self) {
        // Fails if it is not readable, since the deadline has passed.
        let _ = self.memory_taken.read();
        if let Some(plug) = &mut self.plug {
            plug.go_on(Instant::now(), &self.vm, &mut self.memory);
        }
    }

    /// How much memory is to be plugged in, and how much is.
    ///
    /// # Errors
    /// [`PlugError::NoDevice`].
    pub fn plugged_memory(&self) -> Result<Sizes, PlugError> {
        Ok(self.plug.as_ref().ok_or(PlugError::NoDevice)?.sizes())
    }

    /// What is paused, in that order.
    fn parts(&mut self) -> Vec<&mut dyn Pausable> {
        std::iter::once(&mut self.vcpus as &mut dyn Pausable)
            .chain(self.devices.pausable())
            .collect()
    }

    /// Adds a device to the running VM, and returns its slot on the PCI bus. The guest finds it when it scans
    /// the bus again. If this fails, nothing has changed.
    ///
    /// # Errors
    /// [`Error`] if the device can't be created, or no slot is empty.
    pub fn attach(&mut self, build: DeviceBuilder) -> Result<u8, Error> {
        let slot = self.devices.attach(build, &self.vm)?;
        if let Some(plugger) = self.devices.plugger(slot) {
            self.plug = Some(Plug::new(plugger, Arc::clone(&self.memory_taken)));
        }
        Ok(slot)
    }

    /// Adds the devices that every VM has to the running VM, but those with which it was restored. The guest finds
    /// them when it scans the bus again.
    ///
    /// # Errors
    /// [`Error::HasCommonDevices`] the second time. If one can't be created, or no slot is empty, [`Error`];
    /// those that were added before it stay.
    pub fn attach_common(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.has_common_devices, true) {
            return Err(Error::HasCommonDevices);
        }
        for device in self.devices.missing_common() {
            self.attach(device)?;
        }
        Ok(())
    }

    /// Removes the device that [`Machine::attach`] has put into `slot`. A guest that has not removed it reads
    /// all ones from then on.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`] if there is none. [`Error::Permanent`] if it plugs memory.
    pub fn detach(&mut self, slot: u8) -> Result<(), Error> {
        self.devices.detach(slot, &self.vm)
    }

    /// The VM's outcome, readable as a descriptor once it is set.
    #[must_use]
    pub fn vm_exit(&self) -> &VmExit {
        &self.vm_exit
    }

    /// The receiving side of the guest's serial port.
    #[must_use]
    pub fn serial_input(&self) -> &SerialInput {
        &self.serial_input
    }

    /// Gives the VM a new generation id and notifies the guest, whose kernel then reseeds its random number
    /// generator. To be called when a VM continues from a snapshot, before its vCPUs run.
    ///
    /// # Errors
    /// [`generation_id::Error`] if the host has no random bytes or the interrupt can't be raised.
    pub fn renew_generation_id(&self) -> Result<(), generation_id::Error> {
        self.generation_id.renew()
    }

    /// VM exits since the guest's start, by kind: "port …" and "mmio …" are accesses that the VMM handled, by
    /// device; "kvm …" are KVM's own counters, which include exits that KVM handled.
    #[must_use]
    pub fn exit_counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        self.buses.ports.add_counts(&mut counts);
        self.buses.mmio.add_counts(&mut counts);
        self.buses.other_exits.add_counts(&mut counts);
        self.vcpus.add_kvm_counts(&mut counts);
        counts
    }

    /// Writes the console's last, unfinished line to the ring.
    pub fn flush_console(&self) {
        self.console.flush_pending();
    }
}

fn inspect_images(config: &Config, kernel: &File, initrd: &File) -> Result<Images, Error> {
    let kernel = kernel::inspect(kernel).map_err(boot::Error::from)?;
    let initrd_bytes = initrd
        .metadata()
        .map_err(|error| boot::Error::Initrd(error.into()))?
        .len();
    boot::check_memory_size(config.memory_mib, &kernel, initrd_bytes)?;
    Ok(Images { kernel, initrd_bytes })
}

/// Loads the kernel at its own addresses and the initramfs at the end of low RAM.
fn load_images(
    images: &Images,
    kernel: &File,
    initrd: &File,
    memory: &Memory,
) -> Result<initrd::Location, Error> {
    kernel::load(&images.kernel, kernel, memory).map_err(boot::Error::from)?;
    let location = initrd::load(initrd, images.initrd_bytes, memory, images.kernel.end);
    Ok(location.map_err(boot::Error::from)?)
}

/// Writes what the kernel reads at boot: ACPI tables, command line, zero page and a seed.
fn write_boot_data(config: &Config, memory: &Memory, initrd: initrd::Location) -> Result<(), Error> {
    let tables = acpi::build(&acpi::Platform {
        vcpus: config.max_vcpus,
        serial: config.console == ConsoleOutput::Terminal,
    });
    tables.write(memory)?;
    let command_line = cmdline::compose(config).map_err(boot::Error::from)?;
    let mut seed = zero_page::Seed::default();
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| boot::Error::Seed(error.into()))?;
    zero_page::write(memory, &command_line, initrd, layout::ACPI, seed)?;
    Ok(())
}
