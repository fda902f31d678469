//! What a data path has in hand between activation and reset: its queues, guest memory, the way to the driver and the
//! worker's epoll set. Used on the worker's thread alone; every index and address in the rings is the guest's.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use virtio_queue::{QueueOwnedT as _, QueueT as _};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Chain, Fault, KIND_MASK};
use crate::virtio::{ActiveQueue, Interrupt, Memory};

/// Descriptors that the worker waits for.
#[derive(Debug)]
pub struct Poller(pub(super) Epoll);

impl Poller {
    /// Waits for `events` on `fd` from now on and calls
    /// [`DataPath::on_device`](super::DataPath::on_device) with `token` (below 2^62).
    ///
    /// # Errors
    /// The system call's.
    pub fn add(&self, fd: &impl AsRawFd, token: u64, events: EventSet) -> std::io::Result<()> {
        self.control(ControlOperation::Add, fd.as_raw_fd(), events, token & !KIND_MASK)
    }

    /// Changes what is waited for on `fd`.
    ///
    /// # Errors
    /// The system call's.
    pub fn change(&self, fd: &impl AsRawFd, token: u64, events: EventSet) -> std::io::Result<()> {
        self.control(
            ControlOperation::Modify,
            fd.as_raw_fd(),
            events,
            token & !KIND_MASK,
        )
    }

    /// No longer waits on `fd`. Closing its last duplicate does the same.
    ///
    /// # Errors
    /// The system call's.
    pub fn remove(&self, fd: &impl AsRawFd) -> std::io::Result<()> {
        self.control(ControlOperation::Delete, fd.as_raw_fd(), EventSet::empty(), 0)
    }

    pub(super) fn control(
        &self,
        operation: ControlOperation,
        fd: RawFd,
        events: EventSet,
        data: u64,
    ) -> std::io::Result<()> {
        self.0.ctl(operation, fd, EpollEvent::new(events, data))
    }
}

/// What a data path has between activation and reset.
pub struct Active {
    /// All of guest memory.
    pub memory: Arc<Memory>,
    /// Features that the driver accepted.
    pub features: u64,
    /// For the device's own descriptors.
    pub poller: Arc<Poller>,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) queues: Vec<ActiveQueue>,
}

impl Active {
    pub(super) fn queue(&mut self, index: u16) -> Result<&mut ActiveQueue, Fault> {
        self.queues
            .get_mut(usize::from(index))
            .filter(|active| active.queue.ready())
            .ok_or_else(|| Fault(format!("queue {index} is not set up")))
    }

    /// Whether the driver has set up queue `index`.
    #[must_use]
    pub fn has_queue(&self, index: u16) -> bool {
        self.queues
            .get(usize::from(index))
            .is_some_and(|active| active.queue.ready())
    }

    /// The number of descriptors in queue `index`; 0 where it is not set up.
    #[must_use]
    pub fn queue_size(&self, index: u16) -> u16 {
        self.queues
            .get(usize::from(index))
            .map_or(0, |active| active.queue.size())
    }

    /// Takes the next available chain of queue `index`.
    ///
    /// # Errors
    /// Where the rings are broken.
    pub fn pop(&mut self, index: u16) -> Result<Option<Chain>, Fault> {
        let memory = Arc::clone(&self.memory);
        let active = self.queue(index)?;
        let mut available = active
            .queue
            .iter(memory)
            .map_err(|error| Fault::new(&format!("available ring of queue {index}"), error))?;
        Ok(available.next())
    }

    /// Gives the last chain popped from queue `index` back; it will be popped again.
    ///
    /// # Errors
    /// Where the queue is not set up.
    pub fn unpop(&mut self, index: u16) -> Result<(), Fault> {
        self.queue(index)?.queue.go_to_previous_position();
        Ok(())
    }

    /// Returns a chain of queue `index` to the driver with `length` bytes written into it, and says nothing yet.
    ///
    /// # Errors
    /// Where the chain's head or the used ring is outside of its bounds.
    pub fn push(&mut self, index: u16, head: u16, length: u32) -> Result<(), Fault> {
        let memory = Arc::clone(&self.memory);
        self.queue(index)?
            .queue
            .add_used(&*memory, head, length)
            .map_err(|error| Fault::new(&format!("used ring of queue {index}"), error))
    }

    /// Interrupts the driver where it wants to know of what was pushed to queue `index` since the last call.
    ///
    /// # Errors
    /// Where the rings are broken.
    pub fn notify(&mut self, index: u16) -> Result<(), Fault> {
        let memory = Arc::clone(&self.memory);
        let wanted = self
            .queue(index)?
            .queue
            .needs_notification(&*memory)
            .map_err(|error| Fault::new(&format!("available ring of queue {index}"), error))?;
        if wanted {
            self.interrupt.signal_queue(index);
        }
        Ok(())
    }

    /// Asks the driver not to kick queue `index` for now.
    ///
    /// # Errors
    /// Where the rings are broken.
    pub fn mute(&mut self, index: u16) -> Result<(), Fault> {
        let memory = Arc::clone(&self.memory);
        self.queue(index)?
            .queue
            .disable_notification(&*memory)
            .map_err(|error| Fault::new(&format!("used ring of queue {index}"), error))
    }

    /// Asks the driver to kick queue `index` for the next chain; true where one is there already.
    ///
    /// # Errors
    /// Where the rings are broken.
    pub fn unmute(&mut self, index: u16) -> Result<bool, Fault> {
        let memory = Arc::clone(&self.memory);
        self.queue(index)?
            .queue
            .enable_notification(&*memory)
            .map_err(|error| Fault::new(&format!("rings of queue {index}"), error))
    }

    /// Makes the worker call [`DataPath::on_queue`](super::DataPath::on_queue) for `index` once more, after it has
    /// looked at everything else.
    ///
    /// # Errors
    /// Where the queue is not set up or its eventfd fails.
    pub fn again(&mut self, index: u16) -> Result<(), Fault> {
        self.queue(index)?
            .kick
            .write(1)
            .map_err(|error| Fault::new("kick", error))
    }

    /// Serves every available chain of queue `index` with `request`, which gives the number of bytes it wrote. After
    /// as many chains as the queue has descriptors the worker looks at other events first, so that a driver that never
    /// stops can't keep it.
    ///
    /// # Errors
    /// Where the rings are broken.
    pub fn serve(
        &mut self,
        index: u16,
        notify: Notify,
        mut request: impl FnMut(&Arc<Memory>, Chain) -> u32,
    ) -> Result<(), Fault> {
        let mut left = self.queue_size(index);
        let mut silent = false;
        loop {
            self.mute(index)?;
            while left > 0
                && let Some(chain) = self.pop(index)?
            {
                let head = chain.head_index();
                let length = request(&self.memory, chain);
                self.push(index, head, length)?;
                match notify {
                    Notify::Each => self.notify(index)?,
                    Notify::AtEnd => silent = true,
                }
                left = left.saturating_sub(1);
            }
            if left == 0 {
                self.again(index)?;
                break;
            }
            if !self.unmute(index)? {
                break;
            }
        }
        if silent { self.notify(index) } else { Ok(()) }
    }
}

/// When [`Active::serve`] tells the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notify {
    /// After each chain: somebody waits for it.
    Each,
    /// After the last that is there: nobody waits, fewer interrupts.
    AtEnd,
}
