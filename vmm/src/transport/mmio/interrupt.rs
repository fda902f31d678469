//! A virtio-mmio device's one interrupt line and what it means (virtio 1.2, 4.2.2, InterruptStatus). Raised by the
//! device's worker, read and acknowledged by the driver on a vCPU thread.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::status;
use crate::log::Limited;
use crate::virtio::Interrupt;

/// A queue has used buffers.
pub const USED_BUFFERS: u32 = 1;
const CONFIG_CHANGED: u32 = 2;

/// The line and the reasons for which it was raised.
#[derive(Debug)]
pub(super) struct MmioInterrupt {
    line: EventFd,
    pending: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicBool,
    log: Limited,
}

impl MmioInterrupt {
    pub(super) fn new(line: EventFd) -> Self {
        Self {
            line,
            pending: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            log: Limited::new(),
        }
    }

    pub(super) fn pending(&self) -> u32 {
        self.pending.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, reasons: u32) {
        self.pending.fetch_and(!reasons, Ordering::SeqCst);
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The bits of the status register that the device sets.
    pub(super) fn status_bits(&self) -> u8 {
        if self.needs_reset.load(Ordering::SeqCst) {
            status::NEEDS_RESET
        } else {
            0
        }
    }

    /// The device has stopped: nobody raises any more.
    pub(super) fn reset(&self) {
        self.pending.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    /// The reason first, then the line: the driver must find it. Raised even where the same reason is still pending,
    /// as a driver may acknowledge it after it has looked at the queue.
    fn raise(&self, reason: u32) {
        self.pending.fetch_or(reason, Ordering::SeqCst);
        if let Err(error) = self.line.write(1) {
            self.log.say(|| format!("raising an interrupt: {error}"));
        }
    }
}

impl Interrupt for MmioInterrupt {
    fn signal_queue(&self, _index: u16) {
        self.raise(USED_BUFFERS);
    }

    fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG_CHANGED);
    }

    fn signal_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.raise(CONFIG_CHANGED);
    }
}
