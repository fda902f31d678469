//! The end of the VM: the first thread that finds a reason sets the outcome, and the main thread learns of it
//! through an eventfd. Set by vCPU threads, devices and workers; read by the main loop and by vCPU threads,
//! which then stop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use nacre_protocol::control::Outcome;
use vmm_sys_util::eventfd::EventFd;

/// A shared handle on the VM's outcome, which is set at most once. Clones refer to the same VM.
#[derive(Debug, Clone)]
pub struct VmExit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    outcome: OnceLock<Outcome>,
    event: EventFd,
}

impl VmExit {
    /// The handle of a VM that has not ended.
    ///
    /// # Errors
    /// The error of eventfd(2).
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self(Arc::new(Shared {
            outcome: OnceLock::new(),
            event,
        })))
    }

    /// Ends the VM with `outcome`. Does nothing if an outcome is set already.
    pub fn set(&self, outcome: Outcome) {
        if self.0.outcome.set(outcome).is_ok()
            && let Err(error) = self.0.event.write(1)
        {
            // Only a full counter or a closed descriptor could cause this, and neither is possible here.
            eprintln!("nacre-vmm: waking the main thread at the end of the VM: {error}");
        }
    }

    /// Ends the VM because `part` of the VMM failed with `error`.
    pub fn set_fault(&self, part: impl Into<String>, error: impl std::fmt::Display) {
        self.set(Outcome::Fault {
            part: part.into(),
            error: error.to_string(),
        });
    }

    /// The outcome; None while the VM runs.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.0.outcome.get().cloned()
    }

    /// True if an outcome is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.outcome.get().is_some()
    }
}

impl AsFd for VmExit {
    /// Readable once an outcome is set.
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow_eventfd(&self.0.event)
    }
}

/// The descriptor of `event`.
#[allow(unsafe_code, reason = "EventFd exposes its descriptor only as a number")]
#[must_use]
pub fn borrow_eventfd(event: &EventFd) -> BorrowedFd<'_> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the descriptor belongs to `event`, which outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_outcome_is_kept() {
        let vm_exit = VmExit::new().unwrap();
        assert!(!vm_exit.is_set());
        vm_exit.clone().set(Outcome::Panic);
        vm_exit.set(Outcome::PowerOff);
        assert_eq!(vm_exit.outcome(), Some(Outcome::Panic));
    }
}
