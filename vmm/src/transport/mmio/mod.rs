//! virtio-mmio, version 2 (virtio 1.2, 4.2): one page of registers, through which a driver discovers,
//! configures and resets a device. Called by vCPU threads through the bus. Requests do not pass here: the
//! driver's notifications reach the device's worker by ioeventfd, and interrupts reach the guest by irqfd.
//!
//! [`register`] decodes offsets, [`interrupt`] holds the pending reasons.

mod interrupt;
pub mod register;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use self::interrupt::MmioInterrupt;
use self::register::{Half, Read, Write};
use super::queue::QueueSetup;
use super::status::{self, DRIVER_OK, Transition};
use crate::bus::BusDevice;
use crate::log::LimitedLog;
use crate::virtio::{Activation, ActiveQueue, Device, Interrupt as _, Memory};

/// VIRTIO_F_VERSION_1: compliance with virtio 1.0 and later (virtio 1.2, 6).
const VERSION_1: u64 = 1 << 32;

/// Offset of QueueNotify, to which the driver writes a queue's index. The machine registers an ioeventfd per
/// queue here.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// Offset of InterruptACK, to which the driver writes the reasons that it has handled. The machine lets KVM
/// discard writes of [`USED_BUFFERS`], the most frequent ones. This reason then stays pending; as a result,
/// the driver checks its queues at every interrupt.
pub const INTERRUPT_ACK: u64 = 0x64;
pub use self::interrupt::USED_BUFFERS;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"NACR");
/// Length of a shared memory region that does not exist (virtio 1.2, 4.2.2).
const NO_SHARED_MEMORY: u32 = u32::MAX;

/// The eventfds that are registered with KVM for a device.
pub struct KvmNotifiers {
    /// Raises the device's interrupt when it is written.
    pub irqfd: EventFd,
    /// One per queue: KVM writes it when the driver notifies the queue.
    pub ioeventfds: Vec<EventFd>,
}

/// A device with its registers.
pub struct MmioTransport {
    device: Device,
    memory: Arc<Memory>,
    interrupt: Arc<MmioInterrupt>,
    ioeventfds: Vec<EventFd>,
    queues: Vec<QueueSetup>,
    status: u8,
    selected: Selected,
    driver_features: u64,
    log: LimitedLog,
}

/// The selector registers: which part of an indexed register the driver accesses.
#[derive(Debug, Default)]
struct Selected {
    device_features: u32,
    driver_features: u32,
    queue: u32,
}

impl MmioTransport {
    /// Wraps `device`, which is then in its initial state.
    #[must_use]
    pub fn new(device: Device, memory: Arc<Memory>, notifiers: KvmNotifiers) -> Self {
        let queues = device
            .queue_sizes()
            .iter()
            .map(|max| QueueSetup::new(*max))
            .collect();
        Self {
            device,
            memory,
            interrupt: Arc::new(MmioInterrupt::new(notifiers.irqfd)),
            ioeventfds: notifiers.ioeventfds,
            queues,
            status: 0,
            selected: Selected::default(),
            driver_features: 0,
            log: LimitedLog::new(),
        }
    }

    fn read_register(&self, register: Read) -> u32 {
        match register {
            Read::Magic => MAGIC,
            Read::Version => VERSION,
            Read::DeviceType => self.device.device_type(),
            Read::Vendor => VENDOR,
            Read::DeviceFeatures => match self.selected.device_features {
                0 => Half::Low.of(self.device.features()),
                1 => Half::High.of(self.device.features()),
                _ => 0,
            },
            Read::QueueSizeMax => self.queue().map_or(0, |queue| u32::from(queue.max_size())),
            Read::QueueReady => self.queue().map_or(0, |queue| u32::from(queue.is_ready())),
            Read::InterruptStatus => self.interrupt.pending(),
            Read::Status => u32::from(self.status | self.interrupt.status_bits()),
            Read::SharedMemory => NO_SHARED_MEMORY,
            Read::ConfigGeneration => self.device.config().generation(),
        }
    }

    fn write_register(&mut self, register: Write, value: u32) {
        match register {
            Write::DeviceFeaturesSelect => self.selected.device_features = value,
            Write::DriverFeaturesSelect => self.selected.driver_features = value,
            Write::DriverFeatures => self.accept_features(value),
            Write::QueueSelect => self.selected.queue = value,
            Write::QueueSize => self.change_queue(|queue| queue.set_size(value)),
            Write::QueueAddress(ring, half) => {
                self.change_queue(|queue| queue.set_address(ring, half, value));
            }
            Write::QueueReady => self.set_queue_ready(value == 1),
            Write::QueueNotify => self.notify(value),
            Write::InterruptAck => self.interrupt.acknowledge(value),
            Write::Status => self.set_status(value),
            Write::SharedMemorySelect => {}
        }
    }

    fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(self.selected.queue).ok()?)
    }

    /// Sets the selected half of the driver's features, which are fixed once FEATURES_OK is set (virtio 1.2,
    /// 3.1.1).
    fn accept_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return self.log_misuse("sets features after FEATURES_OK");
        }
        match self.selected.driver_features {
            0 => self.driver_features = Half::Low.replace(self.driver_features, value),
            1 => self.driver_features = Half::High.replace(self.driver_features, value),
            _ if value == 0 => {}
            _ => self.log_misuse("accepts features beyond bit 63"),
        }
    }

    /// Changes the selected queue, unless it is ready or the device is active (virtio 1.2, 4.2.2.2).
    fn change_queue(&mut self, change: impl FnOnce(&mut QueueSetup)) {
        let active = self.status & DRIVER_OK != 0;
        let queue = usize::try_from(self.selected.queue)
            .ok()
            .and_then(|index| self.queues.get_mut(index));
        match queue {
            Some(queue) if !active && !queue.is_ready() => change(queue),
            Some(_) => self.log_misuse("changes a queue that is in use"),
            None => self.log_misuse("changes a queue that does not exist"),
        }
    }

    /// Handles a write to QueueReady of the selected queue.
    fn set_queue_ready(&mut self, ready: bool) {
        let memory = Arc::clone(&self.memory);
        let active = self.status & DRIVER_OK != 0;
        let queue = usize::try_from(self.selected.queue)
            .ok()
            .and_then(|index| self.queues.get_mut(index));
        let Some(queue) = queue else {
            return self.log_misuse("sets QueueReady of a queue that does not exist");
        };
        if active {
            return self.log_misuse("sets QueueReady of an active device");
        }
        if !ready {
            return queue.set_not_ready();
        }
        if let Err(reason) = queue.make_ready(&memory) {
            self.interrupt.signal_needs_reset();
            self.log_misuse(&format!("enables an unusable queue: {reason}"));
        }
    }

    /// Handles a notification that has no ioeventfd, such as one for a queue that does not exist.
    fn notify(&self, index: u32) {
        let ioeventfd = usize::try_from(index)
            .ok()
            .and_then(|index| self.ioeventfds.get(index));
        match ioeventfd.map(|ioeventfd| ioeventfd.write(1)) {
            Some(Ok(())) => {}
            Some(Err(error)) => self.log(&format!("notifying queue {index}: {error}")),
            None => self.log_misuse("notifies a queue that does not exist"),
        }
    }

    fn set_status(&mut self, value: u32) {
        let features_valid = self.driver_features & !self.device.features() == 0
            && self.driver_features & VERSION_1 == VERSION_1;
        match status::transition(self.status, value, features_valid) {
            Transition::Reset => self.reset(),
            Transition::Set(status) => self.status = status,
            Transition::Activate(status) => {
                self.status = status;
                if let Err(reason) = self.activate() {
                    self.interrupt.signal_needs_reset();
                    self.log(&format!("not activated: {reason}"));
                }
            }
            Transition::Refuse => self.log_misuse("writes an invalid device status"),
        }
    }

    /// Passes the queues to the device; returns why that is not possible.
    fn activate(&mut self) -> Result<(), String> {
        if self.interrupt.status_bits() & status::NEEDS_RESET != 0 {
            return Err("the device needs a reset".to_owned());
        }
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, (setup, ioeventfd)) in (0..).zip(self.queues.iter().zip(&self.ioeventfds)) {
            let queue = setup
                .queue()
                .map_err(|reason| format!("queue {index}: {reason}"))?;
            let kick = ioeventfd
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
            .map_err(|error| error.source.to_string())
    }

    /// Stops the device and sets all registers to their initial values.
    fn reset(&mut self) {
        if self.status & DRIVER_OK != 0
            && let Err(error) = self.device.reset()
        {
            // The worker may still use the queues, so the device must not be activated again.
            self.interrupt.signal_needs_reset();
            return self.log(&format!("not reset: {}", error.source));
        }
        self.status = 0;
        self.driver_features = 0;
        self.selected = Selected::default();
        self.queues.iter_mut().for_each(QueueSetup::reset);
        self.interrupt.reset();
    }

    /// Logs that the guest's driver did something that the specification does not allow.
    fn log_misuse(&self, action: &str) {
        self.log(&format!("the guest's driver {action}"));
    }

    fn log(&self, text: &str) {
        self.log
            .write(|| format!("virtio {}: {text}", self.device.name()));
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            return self.device.config().read(offset, data);
        }
        let value = match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => {
                register::read(offset).map(|register| *word = self.read_register(register).to_le_bytes())
            }
            Err(_) => None,
        };
        if value.is_none() {
            data.fill(0);
            self.log_misuse(&format!("reads {} bytes at {offset:#x}", data.len()));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            if let Err(error) = self.device.config().write(offset, data) {
                self.log_misuse(&format!("writes its configuration: {error}"));
            }
            return;
        }
        let word = <[u8; 4]>::try_from(data).map(u32::from_le_bytes);
        match (register::write(offset), word) {
            (Some(register), Ok(value)) => self.write_register(register, value),
            _ => self.log_misuse(&format!("writes {} bytes at {offset:#x}", data.len())),
        }
    }
}
