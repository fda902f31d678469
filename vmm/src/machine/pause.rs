//! Pausing and resuming a VM: the vCPUs first, then each device, and back in reverse order, so that no device
//! is still when a vCPU can reach it. Called by [`super::Machine`]; pure apart from the parts that it is
//! given.
//!
//! ```text
//! NotStarted ──run──▶ Running ──pause──▶ Paused
//!                        ▲   ◀──resume──────┘
//!                        └── a pause that fails is undone
//! ```

use std::time::Duration;

use crate::virtio::DeviceError;

/// Whether the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunState {
    /// No instruction of the guest has run.
    NotStarted,
    Running,
    /// No vCPU runs the guest, and no device's worker accesses its memory.
    Paused,
}

/// Why the VM could not be paused or resumed.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// [`super::Machine::run`] was not called yet.
    #[error("the guest has not been started")]
    NotStarted,
    /// The VM has an outcome.
    #[error("the VM has ended")]
    Ended,
    /// This vCPU did not leave the guest or a device's registers in time.
    #[error("vCPU {index} has not paused within {timeout:?}")]
    VcpuRuns {
        /// The vCPU's number, from 0.
        index: u8,
        /// How long the VMM waited.
        timeout: Duration,
    },
    /// The thread of this vCPU has exited.
    #[error("the thread of vCPU {0} has exited")]
    VcpuExited(u8),
    /// A device's worker did not answer in time, or its thread has exited.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl PauseError {
    /// This error, or [`PauseError::Ended`] if the VM has ended: that is why threads have exited.
    pub(super) fn unless(self, ended: bool) -> Self {
        if ended { Self::Ended } else { self }
    }
}

/// A part of the VM that works on its own: all vCPUs together, or one device.
pub(super) trait Pausable {
    /// Returns once this part does nothing. If this fails, the part may be running, or pause later;
    /// [`Pausable::resume`] undoes both.
    fn pause(&mut self) -> Result<(), PauseError>;
    /// Makes this part work again. Has no effect if it does.
    fn resume(&mut self) -> Result<(), PauseError>;
}

/// Pauses `parts` in order. If one fails, resumes it and those before it, and returns why.
pub(super) fn pause_all(parts: &mut [&mut dyn Pausable]) -> Result<(), PauseError> {
    for index in 0..parts.len() {
        let paused = parts.get_mut(index).map_or(Ok(()), |part| part.pause());
        if let Err(error) = paused {
            let tried = parts.get_mut(..=index).unwrap_or_default();
            // A part that can't resume, either, has lost its thread, and that has ended the VM.
            let _ = resume_all(tried);
            return Err(error);
        }
    }
    Ok(())
}

/// Resumes `parts` in reverse order: all of them, even if one fails. Returns the first error.
pub(super) fn resume_all(parts: &mut [&mut dyn Pausable]) -> Result<(), PauseError> {
    let mut result = Ok(());
    for part in parts.iter_mut().rev() {
        result = result.and(part.resume());
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    type Calls = Arc<Mutex<Vec<String>>>;

    /// Records its calls; the methods named in `fails` fail.
    struct Part {
        name: u8,
        fails: &'static [&'static str],
        calls: Calls,
    }

    impl Part {
        fn call(&self, method: &str) -> Result<(), PauseError> {
            self.calls.lock().unwrap().push(format!("{method} {}", self.name));
            if self.fails.contains(&method) {
                Err(PauseError::VcpuExited(self.name))
            } else {
                Ok(())
            }
        }
    }

    impl Pausable for Part {
        fn pause(&mut self) -> Result<(), PauseError> {
            self.call("pause")
        }

        fn resume(&mut self) -> Result<(), PauseError> {
            self.call("resume")
        }
    }

    /// Three parts whose methods fail as listed.
    fn parts(fails: [&'static [&'static str]; 3]) -> (Vec<Part>, Calls) {
        let calls = Calls::default();
        let parts = (0..).zip(fails).map(|(name, fails)| Part {
            name,
            fails,
            calls: Arc::clone(&calls),
        });
        (parts.collect(), calls)
    }

    fn as_dyn(parts: &mut [Part]) -> Vec<&mut dyn Pausable> {
        parts.iter_mut().map(|part| part as &mut dyn Pausable).collect()
    }

    #[test]
    fn the_end_of_the_vm_hides_the_errors_that_follow_from_it() {
        let of = |ended| PauseError::VcpuExited(1).unless(ended);
        assert!(matches!(of(true), PauseError::Ended));
        assert!(matches!(of(false), PauseError::VcpuExited(1)));
    }

    #[test]
    fn parts_pause_in_order_and_resume_in_reverse() {
        let (mut parts, calls) = parts([&[], &[], &[]]);
        pause_all(&mut as_dyn(&mut parts)).unwrap();
        resume_all(&mut as_dyn(&mut parts)).unwrap();
        let expected = [
            "pause 0", "pause 1", "pause 2", "resume 2", "resume 1", "resume 0",
        ];
        assert_eq!(*calls.lock().unwrap(), expected);
    }

    #[test]
    fn a_failed_pause_is_undone_and_returns_its_error() {
        let (mut parts, calls) = parts([&[], &["pause", "resume"], &[]]);
        let error = pause_all(&mut as_dyn(&mut parts)).unwrap_err();
        assert!(matches!(error, PauseError::VcpuExited(1)), "{error}");
        let expected = ["pause 0", "pause 1", "resume 1", "resume 0"];
        assert_eq!(*calls.lock().unwrap(), expected);
    }

    #[test]
    fn every_part_is_resumed_even_if_one_fails() {
        let (mut parts, calls) = parts([&["resume"], &[], &["resume"]]);
        let error = resume_all(&mut as_dyn(&mut parts)).unwrap_err();
        assert!(matches!(error, PauseError::VcpuExited(2)), "{error}");
        assert_eq!(*calls.lock().unwrap(), ["resume 2", "resume 1", "resume 0"]);
    }
}
