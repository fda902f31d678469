//! The PCI function of a virtio device: what the guest reads in its configuration space and in BAR 0, and its
//! interrupts. Shared by the transport, on vCPU threads, and the device's worker, which raises interrupts.
//!
//! Every change is mirrored to pages that the guest reads without a VM exit ([`super::page`]).
//!
//! Lock order: the transport's lock, the lock of the device's [`crate::virtio::ConfigSpace`], this one. While
//! this one is held, a message may be sent, and nothing waits for the worker.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::config_space::{
    BarAccess, DEVICE_CONFIG, DEVICE_CONFIG_BYTES, ISR, Identity, MSIX_PENDING, MSIX_TABLE, PciConfigSpace,
};
use super::msix::{Msix, NO_VECTOR, Vector};
use super::page::RegisterPages;
use super::register::{COMMON_BYTES, DeviceRegisters, DriverRegisters, encode};
use crate::log::LimitedLog;
use crate::msi::{Message, SendMessage};
use crate::transport::status::NEEDS_RESET;
use crate::virtio::{Interrupt, copy_padded};

/// ISR status (virtio 1.2, 4.1.4.5): a queue has used buffers; only if MSI-X is disabled.
const ISR_QUEUE: u8 = 1;
/// ISR status: the configuration or the device status has changed.
const ISR_CONFIG: u8 = 2;

/// The pages that mirror a function's registers.
#[derive(Clone, Copy)]
pub struct FunctionPages {
    /// One page: the configuration space.
    pub config: RegisterPages,
    /// Two pages: BAR 0.
    pub bar0: RegisterPages,
}

/// A structure in BAR 0.
#[derive(Debug, Clone, Copy)]
enum Area {
    Common,
    DeviceConfig,
    Table,
    Pending,
}

/// See the module's documentation.
pub struct PciFunction {
    state: Mutex<State>,
}

/// What the driver has set, and what the guest has been told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionState {
    pub(super) config: Vec<u8>,
    needs_reset: bool,
    isr: u8,
    pub(super) vectors: Vec<Vector>,
    config_vector: u16,
    pub(super) queue_vectors: Vec<u16>,
}

struct State {
    config: PciConfigSpace,
    driver: DriverRegisters,
    device_config: [u8; DEVICE_CONFIG_BYTES as usize],
    generation: u8,
    needs_reset: bool,
    isr: u8,
    msix: Msix,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    pages: FunctionPages,
    /// Whether the pages of BAR 0 have the registers; otherwise they read as all ones.
    bar0_shown: bool,
    send: SendMessage,
    log: LimitedLog,
}

impl PciFunction {
    /// The function as after a reset.
    #[must_use]
    pub fn new(identity: &Identity, pages: FunctionPages, send: SendMessage) -> Self {
        let mut state = State {
            config: PciConfigSpace::new(identity),
            driver: DriverRegisters::default(),
            device_config: [0; DEVICE_CONFIG_BYTES as usize],
            generation: 0,
            needs_reset: false,
            isr: 0,
            msix: Msix::new(identity.vectors),
            config_vector: NO_VECTOR,
            queue_vectors: vec![NO_VECTOR; usize::from(identity.queues)],
            pages,
            bar0_shown: true,
            send,
            log: LimitedLog::new(),
        };
        state.store_config();
        state.mirror(&Area::ALL);
        Self {
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change that concerns `areas`, and shows it to the guest.
    fn change<T>(&self, areas: &[Area], change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        state.mirror(areas);
        result
    }

    /// Reads the configuration space.
    pub fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_padded(self.lock().config.bytes(), offset, data);
    }

    /// Writes the configuration space. Returns the write to a BAR that was asked for with it.
    pub fn write_config(&self, offset: usize, data: &[u8]) -> Option<(BarAccess, [u8; 4])> {
        self.change(&[Area::Pending], |state| {
            let access = state.config.write(offset, data);
            let control = state.config.interrupt_control();
            state.with_msix(|msix, send| msix.set_control(control, send));
            state.store_config();
            access
        })
    }

    /// Whether the function responds to memory accesses in `bar`.
    pub fn is_mapped(&self, bar: usize) -> bool {
        self.lock().config.is_mapped(bar)
    }

    /// Reads BAR 0: the common and the device configuration structure, the MSI-X table and pending bits.
    pub fn read_bar0(&self, offset: usize, data: &mut [u8]) {
        let state = self.lock();
        if state.config.is_mapped(0) {
            state.read_bar0(offset, data);
        } else {
            data.fill(0xff);
        }
    }

    /// Reads and clears the ISR status (virtio 1.2, 4.1.4.5).
    pub fn take_isr(&self) -> u8 {
        self.change(&[], |state| std::mem::take(&mut state.isr))
    }

    /// Writes `data` at `offset` of the MSI-X table; false if the access is invalid.
    pub fn write_msix_table(&self, offset: usize, data: &[u8]) -> bool {
        self.change(&[Area::Table, Area::Pending], |state| {
            state.with_msix(|msix, send| msix.write_table(offset, data, send))
        })
    }

    /// Sets the registers that the driver's writes decide.
    pub fn show(&self, driver: DriverRegisters) {
        self.change(&[Area::Common], |state| state.driver = driver);
    }

    /// Sets the device configuration structure and its generation. Bytes beyond the structure's end are
    /// dropped.
    ///
    /// config_generation is twice `generation`, and odd while the bytes change. So a driver that reads some
    /// of them before the change and others after it finds another value and reads again (virtio 1.2,
    /// 4.1.4.3.1). The caller prevents that two threads call this at once.
    pub fn show_device_config(&self, bytes: &[u8], generation: u32) {
        let [shown, ..] = generation.wrapping_mul(2).to_le_bytes();
        self.change(&[Area::Common], |state| state.generation = shown.wrapping_sub(1));
        self.change(&[Area::DeviceConfig], |state| {
            copy_padded(bytes, 0, &mut state.device_config);
        });
        self.change(&[Area::Common], |state| state.generation = shown);
    }

    /// Maps configuration changes to `vector`, or to none if it does not exist.
    pub fn set_config_vector(&self, vector: u16) {
        self.change(&[Area::Common], |state| {
            state.config_vector = state.msix.check(vector)
        });
    }

    /// Maps queue `index` to `vector`, or to none if it does not exist. False if the queue does not exist.
    pub fn set_queue_vector(&self, index: u16, vector: u16) -> bool {
        self.change(&[Area::Common], |state| {
            let vector = state.msix.check(vector);
            match state.queue_vectors.get_mut(usize::from(index)) {
                Some(current) => {
                    *current = vector;
                    true
                }
                None => false,
            }
        })
    }

    /// The state of the function, apart from what the transport shows in it.
    pub fn save(&self) -> FunctionState {
        let state = self.lock();
        FunctionState {
            config: state.config.bytes().to_vec(),
            needs_reset: state.needs_reset,
            isr: state.isr,
            vectors: state.msix.save(),
            config_vector: state.config_vector,
            queue_vectors: state.queue_vectors.clone(),
        }
    }

    /// Sets the state of a function that no driver has used. False if `saved` is that of another one; this
    /// must then not be used.
    pub fn restore(&self, saved: &FunctionState) -> bool {
        self.change(&Area::ALL, |state| {
            let same_queues = state.queue_vectors.len() == saved.queue_vectors.len();
            if !same_queues || !state.config.restore(&saved.config) {
                return false;
            }
            let control = state.config.interrupt_control();
            let fits = state.msix.restore(&saved.vectors, control);
            state.config_vector = state.msix.check(saved.config_vector);
            state.queue_vectors = saved
                .queue_vectors
                .iter()
                .map(|vector| state.msix.check(*vector))
                .collect();
            state.needs_reset = saved.needs_reset;
            state.isr = saved.isr;
            state.store_config();
            fits
        })
    }

    /// Whether the device has set DEVICE_NEEDS_RESET.
    pub fn needs_reset(&self) -> bool {
        self.lock().needs_reset
    }

    /// Undoes what belongs to the device's activation: vectors, pending interrupts, DEVICE_NEEDS_RESET. The
    /// device must have stopped, so that it raises no interrupt meanwhile. The configuration space and the
    /// MSI-X table stay as they are (virtio 1.2, 4.1.4.3.1).
    pub fn reset(&self, driver: DriverRegisters) {
        self.change(&[Area::Common, Area::Pending], |state| {
            state.driver = driver;
            state.needs_reset = false;
            state.isr = 0;
            state.config_vector = NO_VECTOR;
            state.queue_vectors.fill(NO_VECTOR);
            state.msix.clear_pending();
        });
    }
}

impl Interrupt for PciFunction {
    fn signal_queue(&self, index: u16) {
        let mut state = self.lock();
        let Some(vector) = state.queue_vectors.get(usize::from(index)).copied() else {
            return;
        };
        if state.msix.is_enabled() {
            state.raise(vector);
        } else {
            state.isr |= ISR_QUEUE;
            state.mirror(&[]);
        }
    }

    fn signal_config(&self) {
        self.lock().signal_config();
    }

    fn signal_needs_reset(&self) {
        let mut state = self.lock();
        state.needs_reset = true;
        state.signal_config();
    }
}

impl State {
    /// Calls `act` with the vectors and a closure that sends their messages.
    fn with_msix<T>(&mut self, act: impl FnOnce(&mut Msix, &mut dyn FnMut(Message)) -> T) -> T {
        let (send, log) = (&self.send, &self.log);
        act(&mut self.msix, &mut |message| {
            if let Err(error) = send(message) {
                // The guest may have written any address and data, and KVM refuses some.
                log.write(|| format!("sending the interrupt {message:x?}: {error}"));
            }
        })
    }

    /// Raises `vector`. The guest can read the pending bit if the vector is masked.
    fn raise(&mut self, vector: u16) {
        if !self.with_msix(|msix, send| msix.raise(vector, send)) {
            self.mirror(&[Area::Pending]);
        }
    }

    /// A configuration change notification: the reason, then the interrupt.
    fn signal_config(&mut self) {
        self.isr |= ISR_CONFIG;
        // The driver reads the new registers in its interrupt handler.
        self.mirror(&[Area::Common]);
        self.raise(self.config_vector);
    }

    /// What `area` reads as.
    fn area(&self, area: Area) -> Vec<u8> {
        match area {
            Area::Common => self.common().to_vec(),
            Area::DeviceConfig => self.device_config.to_vec(),
            Area::Table => self.msix.table(),
            Area::Pending => self.msix.pending_bits(),
        }
    }

    fn common(&self) -> [u8; COMMON_BYTES as usize] {
        let queue_vector = self.queue_vectors.get(usize::from(self.driver.queue_select));
        let device = DeviceRegisters {
            config_vector: self.config_vector,
            queue_vector: queue_vector.copied().unwrap_or(NO_VECTOR),
            generation: self.generation,
            needs_reset: if self.needs_reset { NEEDS_RESET } else { 0 },
        };
        encode(&self.driver, device)
    }

    fn read_bar0(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        for area in Area::ALL {
            let bytes = self.area(area);
            for (index, byte) in (offset..).zip(data.iter_mut()) {
                if let Some(value) = index
                    .checked_sub(area.offset())
                    .and_then(|index| bytes.get(index))
                {
                    *byte = *value;
                }
            }
        }
    }

    /// Stores in the pages what `areas`, which have changed, read as now.
    fn mirror(&mut self, areas: &[Area]) {
        let mapped = self.config.is_mapped(0);
        let mut stale = areas;
        if mapped != self.bar0_shown {
            self.bar0_shown = mapped;
            let byte = if mapped { 0 } else { 0xff };
            self.pages.bar0.fill(0, byte);
            self.pages.bar0.fill(1, byte);
            stale = &Area::ALL;
        }
        if mapped {
            for area in stale {
                self.pages.bar0.store(area.offset(), &self.area(*area));
            }
        }
        if self.refresh_window() {
            self.store_config();
        }
    }

    fn store_config(&self) {
        self.pages.config.store(0, self.config.bytes());
    }

    /// Sets pci_cfg_data to what the chosen registers read as: nobody sees when the guest reads it. For the
    /// same reason, reading the ISR status there does not clear it. False if no registers are chosen.
    fn refresh_window(&mut self) -> bool {
        let Some(access) = self.config.window() else {
            return false;
        };
        let mut data = [0; 4];
        let part = data.get_mut(..access.length).unwrap_or_default();
        match access.bar {
            0 => self.read_bar0(usize::try_from(access.offset).unwrap_or(usize::MAX), part),
            _ if access.offset == ISR => copy_padded(&[self.isr], 0, part),
            _ => {}
        }
        self.config.set_window_data(&data);
        true
    }
}

impl Area {
    const ALL: [Self; 4] = [Self::Common, Self::DeviceConfig, Self::Table, Self::Pending];

    /// Offset in BAR 0.
    fn offset(self) -> usize {
        let offset = match self {
            Self::Common => 0,
            Self::DeviceConfig => DEVICE_CONFIG,
            Self::Table => MSIX_TABLE,
            Self::Pending => MSIX_PENDING,
        };
        usize::try_from(offset).unwrap_or(usize::MAX)
    }
}
