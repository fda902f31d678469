//! virtio-mmio, version 2 (virtio 1.2, 4.2): one page of registers between a device and its driver. Called by vCPU
//! threads through the bus; the data path never comes here, as notifications go to the device's worker by ioeventfd
//! and interrupts to the guest by irqfd.
//!
//! The driver's steps are in [`status`], what it may set for a queue in [`queue`], the registers in [`register`].
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

mod interrupt;
mod queue;
pub mod register;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use self::interrupt::MmioInterrupt;
use self::queue::QueueSetup;
use self::register::{Part, Read, Write};
use self::status::{DRIVER_OK, Step};
use crate::bus::BusDevice;
use crate::log::Limited;
use crate::virtio::{Activation, ActiveQueue, Interrupt as _, Memory, VirtioDevice};

/// The driver knows virtio 1.0 and later (virtio 1.2, 6).
const VERSION_1: u64 = 1 << 32;

/// Where the driver writes a queue's index to notify it; the machine wires an ioeventfd there for each queue.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// Where the driver acknowledges an interrupt. The machine lets KVM swallow [`USED_BUFFERS`] there, which most
/// acknowledgements are: that reason then stays pending, and all that follows is that the driver, once interrupted,
/// looks at its queues.
pub const INTERRUPT_ACK: u64 = 0x64;
pub use self::interrupt::USED_BUFFERS;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"NACR");
/// The length of a shared memory region that does not exist (virtio 1.2, 4.2.2).
const NO_SHARED_MEMORY: u32 = u32::MAX;

/// What ties a device to KVM.
pub struct Wires {
    /// Raises the device's interrupt line.
    pub line: EventFd,
    /// Written when the driver notifies a queue: one each.
    pub doorbells: Vec<EventFd>,
}

/// A device behind its registers.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: Arc<Memory>,
    interrupt: Arc<MmioInterrupt>,
    doorbells: Vec<EventFd>,
    queues: Vec<QueueSetup>,
    status: u8,
    selected: Selected,
    driver_features: u64,
    log: Limited,
}

/// What the driver's selectors point at.
#[derive(Debug, Default)]
struct Selected {
    device_features: u32,
    driver_features: u32,
    queue: u32,
}

impl MmioTransport {
    /// Puts `device` behind registers.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>, memory: Arc<Memory>, wires: Wires) -> Self {
        let queues = device
            .queue_sizes()
            .iter()
            .map(|max| QueueSetup::new(*max))
            .collect();
        Self {
            device,
            memory,
            interrupt: Arc::new(MmioInterrupt::new(wires.line)),
            doorbells: wires.doorbells,
            queues,
            status: 0,
            selected: Selected::default(),
            driver_features: 0,
            log: Limited::new(),
        }
    }

    fn read_register(&self, register: Read) -> u32 {
        match register {
            Read::Magic => MAGIC,
            Read::Version => VERSION,
            Read::DeviceType => self.device.device_type(),
            Read::Vendor => VENDOR,
            Read::DeviceFeatures => match self.selected.device_features {
                0 => low(self.device.features()),
                1 => high(self.device.features()),
                _ => 0,
            },
            Read::QueueSizeMax => self.queue().map_or(0, |queue| u32::from(queue.max_size())),
            Read::QueueReady => self.queue().map_or(0, |queue| u32::from(queue.is_ready())),
            Read::InterruptStatus => self.interrupt.pending(),
            Read::Status => u32::from(self.status | self.interrupt.status_bits()),
            Read::SharedMemory => NO_SHARED_MEMORY,
            Read::ConfigGeneration => self.interrupt.generation(),
        }
    }

    fn write_register(&mut self, register: Write, value: u32) {
        match register {
            Write::DeviceFeaturesSelect => self.selected.device_features = value,
            Write::DriverFeaturesSelect => self.selected.driver_features = value,
            Write::DriverFeatures => self.accept_features(value),
            Write::QueueSelect => self.selected.queue = value,
            Write::QueueSize => self.set_up(|queue| queue.set_size(value)),
            Write::QueueAddress(ring, Part::Low) => self.set_up(|queue| queue.set_low(ring, value)),
            Write::QueueAddress(ring, Part::High) => self.set_up(|queue| queue.set_high(ring, value)),
            Write::QueueReady => self.make_ready(value == 1),
            Write::QueueNotify => self.notify(value),
            Write::InterruptAck => self.interrupt.acknowledge(value),
            Write::Status => self.set_status(value),
            Write::SharedMemorySelect => {}
        }
    }

    fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(self.selected.queue).ok()?)
    }

    /// Features are fixed once FEATURES_OK is set (virtio 1.2, 3.1.1).
    fn accept_features(&mut self, value: u32) {
        let value = u64::from(value);
        if self.status & status::FEATURES_OK != 0 {
            return self.complain("sets features after FEATURES_OK");
        }
        match self.selected.driver_features {
            0 => self.driver_features = self.driver_features & !u64::from(u32::MAX) | value,
            1 => self.driver_features = self.driver_features & u64::from(u32::MAX) | value << 32,
            _ if value == 0 => {}
            _ => self.complain("accepts features that do not exist"),
        }
    }

    /// Changes the selected queue, unless the device already works with it (virtio 1.2, 4.2.2.2).
    fn set_up(&mut self, change: impl FnOnce(&mut QueueSetup)) {
        let running = self.status & DRIVER_OK != 0;
        let queue = usize::try_from(self.selected.queue)
            .ok()
            .and_then(|index| self.queues.get_mut(index));
        match queue {
            Some(queue) if !running && !queue.is_ready() => change(queue),
            Some(_) => self.complain("changes a queue that is in use"),
            None => self.complain("changes a queue that does not exist"),
        }
    }

    fn make_ready(&mut self, ready: bool) {
        let memory = Arc::clone(&self.memory);
        let running = self.status & DRIVER_OK != 0;
        let queue = usize::try_from(self.selected.queue)
            .ok()
            .and_then(|index| self.queues.get_mut(index));
        let Some(queue) = queue else {
            return self.complain("readies a queue that does not exist");
        };
        if running {
            return self.complain("readies or stops a queue of a running device");
        }
        if !ready {
            return queue.stop();
        }
        if let Err(reason) = queue.make_ready(&memory) {
            self.interrupt.signal_needs_reset();
            self.complain(reason);
        }
    }

    /// Reaches us only where no ioeventfd caught it.
    fn notify(&self, index: u32) {
        let doorbell = usize::try_from(index)
            .ok()
            .and_then(|index| self.doorbells.get(index));
        match doorbell.map(|doorbell| doorbell.write(1)) {
            Some(Ok(())) => {}
            Some(Err(error)) => self.complain(&format!("notifies queue {index}: {error}")),
            None => self.complain("notifies a queue that does not exist"),
        }
    }

    fn set_status(&mut self, value: u32) {
        let features_fit = self.driver_features & !self.device.features() == 0
            && self.driver_features & VERSION_1 == VERSION_1;
        match status::step(self.status, value, features_fit) {
            Step::Reset => self.reset(),
            Step::Set(status) => self.status = status,
            Step::Activate(status) => {
                self.status = status;
                if let Err(reason) = self.activate() {
                    self.interrupt.signal_needs_reset();
                    self.complain(&reason);
                }
            }
            Step::Refuse => self.complain("takes the steps of initialization out of order"),
        }
    }

    fn activate(&mut self) -> Result<(), String> {
        if self.interrupt.status_bits() & status::NEEDS_RESET != 0 {
            return Err("starts a device that needs a reset".to_owned());
        }
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, (setup, doorbell)) in (0..).zip(self.queues.iter().zip(&self.doorbells)) {
            let queue = setup
                .queue()
                .map_err(|reason| format!("has made queue {index} so: {reason}"))?;
            let kick = doorbell
                .try_clone()
                .map_err(|error| format!("queue {index}: {error}"))?;
            queues.push(ActiveQueue { index, queue, kick });
        }
        let activation = Activation {
            memory: Arc::clone(&self.memory),
            queues,
            interrupt: Arc::clone(&self.interrupt) as Arc<_>,
            features: self.driver_features,
        };
        self.device
            .activate(activation)
            .map_err(|error| error.to_string())
    }

    fn reset(&mut self) {
        if self.status & DRIVER_OK != 0
            && let Err(error) = self.device.reset()
        {
            // The worker may still use the queues: the device must not start again.
            self.interrupt.signal_needs_reset();
            return self.complain(&error.to_string());
        }
        self.status = 0;
        self.driver_features = 0;
        self.selected = Selected::default();
        self.queues.iter_mut().for_each(QueueSetup::reset);
        self.interrupt.reset();
    }

    fn complain(&self, what: &str) {
        self.log
            .say(|| format!("virtio {}: the guest's driver {what}", self.device.name()));
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            return self.device.read_config(offset, data);
        }
        let value = match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => {
                register::read(offset).map(|register| *word = self.read_register(register).to_le_bytes())
            }
            Err(_) => None,
        };
        if value.is_none() {
            data.fill(0);
            self.complain(&format!("reads {} bytes at {offset:#x}", data.len()));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let word = <[u8; 4]>::try_from(data).map(u32::from_le_bytes);
        match (register::write(offset), word) {
            (Some(register), Ok(value)) => self.write_register(register, value),
            _ => self.complain(&format!("writes {} bytes at {offset:#x}", data.len())),
        }
    }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default()
}

fn high(value: u64) -> u32 {
    low(value >> 32)
}
