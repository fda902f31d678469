//! The interrupt of a virtio-mmio device with its pending reasons (virtio 1.2, 4.2.2, InterruptStatus).
//! Raised by the device's worker; the driver reads and acknowledges the reasons, on a vCPU thread.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::log::LimitedLog;
use crate::transport::status;
use crate::virtio::Interrupt;

/// Reason: the device has used a buffer of at least one queue (InterruptStatus bit 0).
pub const USED_BUFFERS: u32 = 1;
/// Reason: the configuration or the device status has changed (InterruptStatus bit 1).
const CONFIG_CHANGED: u32 = 2;

/// The irqfd, and the state that the driver reads through registers.
#[derive(Debug)]
pub(super) struct MmioInterrupt {
    irqfd: EventFd,
    pending: AtomicU32,
    needs_reset: AtomicBool,
    log: LimitedLog,
}

impl MmioInterrupt {
    pub(super) fn new(irqfd: EventFd) -> Self {
        Self {
            irqfd,
            pending: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            log: LimitedLog::new(),
        }
    }

    pub(super) fn pending(&self) -> u32 {
        self.pending.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, reasons: u32) {
        self.pending.fetch_and(!reasons, Ordering::SeqCst);
    }

    /// The bits of the status register that the device sets: DEVICE_NEEDS_RESET or none.
    pub(super) fn status_bits(&self) -> u8 {
        if self.needs_reset.load(Ordering::SeqCst) {
            status::NEEDS_RESET
        } else {
            0
        }
    }

    /// Clears all reasons. The device must have stopped, so that none is raised meanwhile.
    pub(super) fn reset(&self) {
        self.pending.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    /// Sets the reason before it raises the interrupt, so that the driver finds it. Raises the interrupt even
    /// if the reason is still pending: the driver may acknowledge that after it has processed the queue.
    fn raise(&self, reason: u32) {
        self.pending.fetch_or(reason, Ordering::SeqCst);
        if let Err(error) = self.irqfd.write(1) {
            self.log.write(|| format!("raising an interrupt: {error}"));
        }
    }
}

impl Interrupt for MmioInterrupt {
    fn signal_queue(&self, _index: u16) {
        self.raise(USED_BUFFERS);
    }

    fn signal_config(&self) {
        self.raise(CONFIG_CHANGED);
    }

    fn signal_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.raise(CONFIG_CHANGED);
    }
}
