//! The VM's end: whoever finds it first says how, the main thread hears of it through a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use nacre_protocol::control::Outcome;
use vmm_sys_util::eventfd::EventFd;

/// A handle on the VM's end; clones share it.
#[derive(Debug, Clone)]
pub struct Ending(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    outcome: OnceLock<Outcome>,
    event: EventFd,
}

impl Ending {
    /// A VM that has not ended.
    ///
    /// # Errors
    /// Where there is no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self(Arc::new(Shared {
            outcome: OnceLock::new(),
            event,
        })))
    }

    /// Ends the VM with `outcome`, unless it has already ended otherwise.
    pub fn end(&self, outcome: Outcome) {
        if self.0.outcome.set(outcome).is_ok()
            && let Err(error) = self.0.event.write(1)
        {
            // Only a full counter or a closed descriptor could do this, and there is neither.
            eprintln!("nacre-vmm: telling the VM's end: {error}");
        }
    }

    /// Ends the VM because `part` can't go on.
    pub fn fault(&self, part: impl Into<String>, error: impl std::fmt::Display) {
        self.end(Outcome::Fault {
            part: part.into(),
            error: error.to_string(),
        });
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.0.outcome.get().cloned()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_come(&self) -> bool {
        self.0.outcome.get().is_some()
    }
}

impl AsFd for Ending {
    /// Readable once the VM has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.0.event)
    }
}

#[allow(
    unsafe_code,
    reason = "the event's type gives its descriptor only as a number"
)]
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the descriptor belongs to `event`, which outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_outcome_stands() {
        let ending = Ending::new().unwrap();
        assert!(!ending.has_come());
        ending.clone().end(Outcome::Panic);
        ending.end(Outcome::PowerOff);
        assert_eq!(ending.outcome(), Some(Outcome::Panic));
    }
}
