//! The taps of a device: queues of one network interface of the host. Which of them the host gives packets to,
//! and which offloads the interface has, follow the driver. Called by the data path.
//!
//! Each change takes the lock of all network interfaces of the host, and to detach a queue waits until no CPU of
//! the host uses it. So a device makes a limited number of changes, and a driver that asks for more goes without.

use std::io;
use std::sync::Arc;

use super::tap::Tap;

/// Most changes in the life of a device. Linux makes as many as the device has queues when it starts, and as
/// many at each change of the number of channels, which is the administrator's.
pub const MAX_CHANGES: u32 = 256;

/// See the module's documentation.
pub struct Taps {
    /// One per queue pair, at least one.
    queues: Vec<Arc<Tap>>,
    /// How many of the queues, from the first one on, the host gives packets to.
    attached: usize,
    /// The offloads, once they were set.
    offload: Option<u32>,
    changes_left: u32,
}

impl Taps {
    /// All queues are attached, as they are when they are opened. The driver may cause `max_changes`.
    pub fn new(queues: Vec<Arc<Tap>>, max_changes: u32) -> Self {
        Self {
            attached: queues.len(),
            queues,
            offload: None,
            changes_left: max_changes,
        }
    }

    /// The number of queues.
    pub fn len(&self) -> usize {
        self.queues.len()
    }

    /// The queues that the host gives packets to.
    pub fn attached(&self) -> &[Arc<Tap>] {
        self.queues.get(..self.attached).unwrap_or_default()
    }

    /// Makes the host give packets to the first `wanted` queues, and to no others.
    ///
    /// # Errors
    /// As [`Tap::set_attached`], or the driver has caused all that it may.
    pub fn attach_first(&mut self, wanted: usize) -> io::Result<()> {
        while self.attached > wanted {
            let last = self.attached.saturating_sub(1);
            self.change(last, |tap| tap.set_attached(false))?;
            self.attached = last;
        }
        while self.attached < wanted.min(self.queues.len()) {
            self.change(self.attached, |tap| tap.set_attached(true))?;
            self.attached = self.attached.saturating_add(1);
        }
        Ok(())
    }

    /// Sets which work the host may leave to the guest: the TUN_F_* flags. They are the interface's.
    ///
    /// # Errors
    /// As [`Tap::set_offload`], or the driver has caused all that it may.
    pub fn set_offload(&mut self, flags: u32) -> io::Result<()> {
        if self.offload != Some(flags) {
            self.change(0, |tap| tap.set_offload(flags))?;
            self.offload = Some(flags);
        }
        Ok(())
    }

    /// Makes a change by queue `index`.
    fn change(&mut self, index: usize, change: impl FnOnce(&Tap) -> io::Result<()>) -> io::Result<()> {
        let left = self.changes_left.checked_sub(1);
        self.changes_left =
            left.ok_or_else(|| io::Error::other("the driver has caused too many changes of the tap"))?;
        self.queues.get(index).map_or(Ok(()), |tap| change(tap))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn taps(count: usize) -> Taps {
        let tap = |_| Arc::new(Tap::from_socket(UnixDatagram::unbound().unwrap().into()));
        Taps::new((0..count).map(tap).collect(), 20)
    }

    #[test]
    fn a_driver_causes_a_limited_number_of_changes() {
        let mut taps = taps(2);
        for _ in 0..10 {
            taps.attach_first(1).unwrap();
            assert_eq!(taps.attached().len(), 1);
            taps.attach_first(2).unwrap();
        }
        let error = taps.attach_first(1).unwrap_err().to_string();
        assert!(error.contains("too many changes"), "{error}");
        assert_eq!(taps.attached().len(), 2);
        assert!(taps.set_offload(1).is_err());
        taps.attach_first(2).unwrap();
    }

    #[test]
    fn a_driver_that_starts_again_changes_nothing() {
        let mut taps = taps(3);
        for _ in 0..1000 {
            taps.set_offload(7).unwrap();
            taps.attach_first(1).unwrap();
        }
        assert_eq!(taps.changes_left, 20 - 3);
    }
}
