//! virtio-pci without the legacy interface (virtio 1.2, 4.1): one PCI function per device, with MSI-X. Called
//! by vCPU threads through the bus. Requests do not pass here: the driver's notifications reach the device's
//! worker by ioeventfd, and the worker sends its interrupts itself.
//!
//! ```text
//! BAR 0  page 0: common configuration, device configuration (0x100)
//!        page 1: MSI-X table, pending bits (0x800)
//! BAR 1  page 0: notifications, 4 bytes per queue
//!        page 1: ISR status
//! ```
//!
//! The guest reads the configuration space and BAR 0 without a VM exit ([`page`]). Reads in BAR 1 exit, as
//! the ISR status is cleared by reading it; a driver that uses MSI-X never reads there. A driver that does
//! not use MSI-X finds the reasons in the ISR status, but gets no interrupt: there is no interrupt pin.
//!
//! [`register`] decodes writes, [`config_space`] and [`msix`] are the PCI part; these three are pure.
//! [`function`] combines what the guest reads, and raises interrupts.

pub mod config_space;
pub mod function;
pub mod msix;
pub mod page;
pub mod register;
pub mod saved;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT as _;
use vmm_sys_util::eventfd::EventFd;

use self::config_space::{
    BarAccess, DEVICE_CONFIG, ISR, Identity, MSIX_PENDING, MSIX_TABLE, NOTIFY_MULTIPLIER,
};
use self::function::{FunctionPages, PciFunction};
use self::register::{COMMON_BYTES, DriverRegisters, QueueRegisters, Write, decode_write};
use self::saved::Position;
use super::queue::QueueSetup;
use super::status::{self, DRIVER_OK, Transition};
use crate::bus::{BusDevice, Half};
use crate::log::LimitedLog;
use crate::memory::SharedMemory;
use crate::msi::SendMessage;
use crate::virtio::{Activation, ActiveQueue, Device, Interrupt as _};

/// VIRTIO_F_VERSION_1: compliance with virtio 1.0 and later (virtio 1.2, 6).
const VERSION_1: u64 = 1 << 32;

/// What the machine assigns to a device.
pub struct Placement {
    /// The addresses of the BARs, multiples of [`crate::layout::BAR_BYTES`].
    pub bars: [u32; 2],
    /// Whether the guest must be told to leave these addresses, as one that runs already must be.
    pub has_fixed_bars: bool,
    /// The pages that the guest reads.
    pub pages: FunctionPages,
    /// One per queue: KVM writes it when the driver notifies the queue.
    pub ioeventfds: Vec<EventFd>,
    /// Number of MSI-X vectors, from 1 to [`config_space::MAX_VECTORS`].
    pub vectors: u16,
    /// Sends the device's interrupts.
    pub send: SendMessage,
}

/// A device with its registers.
pub struct PciTransport {
    device: Device,
    memory: SharedMemory,
    function: Arc<PciFunction>,
    ioeventfds: Vec<EventFd>,
    queues: Vec<QueueSetup>,
    status: u8,
    selected: Selected,
    driver_features: u64,
    log: LimitedLog,
}

/// The selector registers: which part of an indexed register the driver accesses.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Selected {
    device_features: u32,
    driver_features: u32,
    queue: u16,
}

/// The address ranges of a function, as devices on the bus.
pub struct Areas {
    /// The configuration space: one page of the bus's window.
    pub config: Box<dyn BusDevice>,
    /// BAR 0.
    pub bar0: Box<dyn BusDevice>,
    /// BAR 1.
    pub bar1: Box<dyn BusDevice>,
}

/// The offset in BAR 1 of the address to which the driver writes to notify queue `index`.
#[must_use]
pub fn notify_offset(index: u16) -> u32 {
    u32::from(index).saturating_mul(NOTIFY_MULTIPLIER)
}

impl PciTransport {
    /// Wraps `device`, which is then in its initial state.
    #[must_use]
    pub fn new(device: Device, memory: SharedMemory, placement: Placement) -> Self {
        let sizes = device.queue_sizes();
        let queues = u16::try_from(sizes.len()).unwrap_or(u16::MAX);
        let identity = Identity {
            device_type: device.device_type(),
            queues,
            vectors: placement.vectors.clamp(1, config_space::MAX_VECTORS),
            bars: placement.bars,
            has_fixed_bars: placement.has_fixed_bars,
        };
        let function = PciFunction::new(&identity, placement.pages, placement.send);
        let transport = Self {
            queues: sizes.iter().map(|max| QueueSetup::new(*max)).collect(),
            device,
            memory,
            function: Arc::new(function),
            ioeventfds: placement.ioeventfds,
            status: 0,
            selected: Selected::default(),
            driver_features: 0,
            log: LimitedLog::new(),
        };
        let shown = Arc::clone(&transport.function);
        let config = transport.device.config();
        config.watch(move |bytes, generation| shown.show_device_config(bytes, generation));
        transport.function.show(transport.registers());
        transport
    }

    /// Locks `transport`. A vCPU thread holds the lock during an access of the guest.
    pub fn lock(transport: &Mutex<Self>) -> MutexGuard<'_, Self> {
        transport.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device itself, for the machine.
    pub fn device(&mut self) -> &mut Device {
        &mut self.device
    }

    /// The eventfds of the queues' notifications, in order.
    #[must_use]
    pub fn ioeventfds(&self) -> &[EventFd] {
        &self.ioeventfds
    }

    /// The address ranges of `transport`, for the bus. vCPU threads access it one after the other.
    #[must_use]
    pub fn areas(transport: &Arc<Mutex<Self>>) -> Areas {
        let area = |range| -> Box<dyn BusDevice> {
            Box::new(Area {
                transport: Arc::clone(transport),
                range,
            })
        };
        Areas {
            config: area(Range::Config),
            bar0: area(Range::Bar(0)),
            bar1: area(Range::Bar(1)),
        }
    }

    /// What the driver's registers read as.
    fn registers(&self) -> DriverRegisters {
        let queue = self.queues.get(usize::from(self.selected.queue));
        DriverRegisters {
            device_feature_select: self.selected.device_features,
            device_feature: half_of(self.device.features(), self.selected.device_features),
            driver_feature_select: self.selected.driver_features,
            driver_feature: half_of(self.driver_features, self.selected.driver_features),
            queues: u16::try_from(self.queues.len()).unwrap_or(u16::MAX),
            status: self.status,
            queue_select: self.selected.queue,
            queue: queue.map_or_else(QueueRegisters::default, |queue| QueueRegisters {
                size: queue.size(),
                enabled: queue.is_ready(),
                rings: queue.addresses(),
            }),
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let Some((access, data)) = self.function.write_config(offset, data) {
            let data = data.get(..access.length).unwrap_or_default();
            self.write_bar(access, data);
        }
    }

    fn write_bar(&mut self, access: BarAccess, data: &[u8]) {
        let BarAccess { bar, offset, .. } = access;
        let handled = match (bar, offset) {
            (0, ..COMMON_BYTES) => match decode_write(u64::from(offset), data) {
                Some(write) => {
                    self.write_register(write);
                    self.function.show(self.registers());
                    true
                }
                None => false,
            },
            (0, DEVICE_CONFIG..MSIX_TABLE) => {
                let offset = u64::from(offset.saturating_sub(DEVICE_CONFIG));
                self.device.config().write(offset, data).is_ok()
            }
            (0, MSIX_TABLE..MSIX_PENDING) => {
                let offset = usize::try_from(offset.saturating_sub(MSIX_TABLE)).unwrap_or(usize::MAX);
                self.function.write_msix_table(offset, data)
            }
            (1, ..ISR) => self.notify(offset),
            _ => false,
        };
        if !handled {
            self.log_misuse(&format!(
                "writes {} bytes at {offset:#x} of BAR {bar}",
                data.len()
            ));
        }
    }

    fn write_register(&mut self, write: Write) {
        match write {
            Write::DeviceFeatureSelect(value) => self.selected.device_features = value,
            Write::DriverFeatureSelect(value) => self.selected.driver_features = value,
            Write::DriverFeature(value) => self.accept_features(value),
            Write::ConfigVector(vector) => self.function.set_config_vector(vector),
            Write::DeviceStatus(value) => self.set_status(value),
            Write::QueueSelect(value) => self.selected.queue = value,
            Write::QueueSize(value) => self.change_queue(|queue| queue.set_size(value)),
            Write::QueueVector(vector) => {
                if !self.function.set_queue_vector(self.selected.queue, vector) {
                    self.log_misuse("maps a queue that does not exist to a vector");
                }
            }
            Write::QueueEnable(value) => self.enable_queue(value),
            Write::QueueAddress(ring, half, value) => {
                self.change_queue(|queue| queue.set_address(ring, half, value));
            }
        }
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

    /// Changes the selected queue, unless it is enabled or the device is active (virtio 1.2, 4.1.4.3.2).
    fn change_queue(&mut self, change: impl FnOnce(&mut QueueSetup)) {
        let active = self.status & DRIVER_OK != 0;
        match self.queues.get_mut(usize::from(self.selected.queue)) {
            Some(queue) if !active && !queue.is_ready() => change(queue),
            Some(_) => self.log_misuse("changes a queue that is in use"),
            None => self.log_misuse("changes a queue that does not exist"),
        }
    }

    /// Handles a write to queue_enable of the selected queue. Only a reset disables a queue.
    fn enable_queue(&mut self, value: u16) {
        let memory = self.memory.get();
        let active = self.status & DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.selected.queue)) else {
            return self.log_misuse("enables a queue that does not exist");
        };
        if value != 1 || active {
            return self.log_misuse("disables a queue, or enables one of an active device");
        }
        if let Err(reason) = queue.make_ready(&memory) {
            self.function.signal_needs_reset();
            self.log_misuse(&format!("enables an unusable queue: {reason}"));
        }
    }

    /// Handles a notification that KVM has not taken; false if no queue has this offset.
    fn notify(&self, offset: u32) -> bool {
        let index = usize::try_from(offset.div_euclid(NOTIFY_MULTIPLIER)).unwrap_or(usize::MAX);
        let ioeventfd = self.ioeventfds.get(index);
        match ioeventfd
            .filter(|_| offset.is_multiple_of(NOTIFY_MULTIPLIER))
            .map(|ioeventfd| ioeventfd.write(1))
        {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                self.log(&format!("notifying queue {index}: {error}"));
                true
            }
            None => false,
        }
    }

    fn set_status(&mut self, value: u8) {
        let features_valid = self.driver_features & !self.device.features() == 0
            && self.driver_features & VERSION_1 == VERSION_1;
        match status::transition(self.status, value, features_valid) {
            Transition::Reset => self.reset(),
            Transition::Set(status) => self.status = status,
            Transition::Activate(status) => {
                self.status = status;
                if let Err(reason) = self.activate(None) {
                    self.function.signal_needs_reset();
                    self.log(&format!("not activated: {reason}"));
                }
            }
            Transition::Refuse => self.log_misuse("writes an invalid device status"),
        }
    }

    /// Passes the queues to the device; returns why that is not possible. `positions`, by queue, are those at
    /// which it continues in a restored VM.
    fn activate(&mut self, positions: Option<&[Position]>) -> Result<(), String> {
        if self.function.needs_reset() {
            return Err("the device needs a reset".to_owned());
        }
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, (setup, ioeventfd)) in (0..).zip(self.queues.iter().zip(&self.ioeventfds)) {
            let mut queue = setup
                .queue()
                .map_err(|reason| format!("queue {index}: {reason}"))?;
            if let Some(positions) = positions {
                let position = positions.get(usize::from(index));
                let position = position.ok_or_else(|| format!("queue {index}: no position"))?;
                queue.set_next_avail(position.next_avail);
                queue.set_next_used(position.next_used);
            }
            let kick = ioeventfd
                .try_clone()
                .map_err(|error| format!("queue {index}: {error}"))?;
            queues.push(ActiveQueue { index, queue, kick });
        }
        let activation = Activation {
            memory: self.memory.get(),
            queues,
            interrupt: Arc::clone(&self.function) as Arc<_>,
            features: self.driver_features,
            is_restored: positions.is_some(),
        };
        self.device
            .activate(activation)
            .map_err(|error| error.source.to_string())
    }

    /// Stops the device and sets the registers to their initial values.
    fn reset(&mut self) {
        if self.status & DRIVER_OK != 0
            && let Err(error) = self.device.reset()
        {
            // The worker may still use the queues, so the device must not be activated again.
            self.function.signal_needs_reset();
            return self.log(&format!("not reset: {}", error.source));
        }
        self.status = 0;
        self.driver_features = 0;
        self.selected = Selected::default();
        self.queues.iter_mut().for_each(QueueSetup::reset);
        self.function.reset(self.registers());
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

/// One of a function's address ranges.
#[derive(Debug, Clone, Copy)]
enum Range {
    Config,
    Bar(usize),
}

struct Area {
    transport: Arc<Mutex<PciTransport>>,
    range: Range,
}

impl BusDevice for Area {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let transport = PciTransport::lock(&self.transport);
        let function = &transport.function;
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        match self.range {
            Range::Config => function.read_config(at, data),
            Range::Bar(0) => function.read_bar0(at, data),
            Range::Bar(bar) if !function.is_mapped(bar) => data.fill(0xff),
            Range::Bar(_) => {
                data.fill(0);
                if let (true, Some(byte)) = (offset == u64::from(ISR), data.first_mut()) {
                    *byte = function.take_isr();
                }
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut transport = PciTransport::lock(&self.transport);
        match self.range {
            Range::Config => transport.write_config(usize::try_from(offset).unwrap_or(usize::MAX), data),
            Range::Bar(bar) if transport.function.is_mapped(bar) => {
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                let length = data.len();
                transport.write_bar(BarAccess { bar, offset, length }, data);
            }
            Range::Bar(_) => {}
        }
    }
}

/// The half of `features` that a selector register selects; there are no features beyond bit 63.
fn half_of(features: u64, select: u32) -> u32 {
    match select {
        0 => Half::Low.of(features),
        1 => Half::High.of(features),
        _ => 0,
    }
}
