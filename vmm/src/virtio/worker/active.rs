//! What a data path works with between activation and reset: its queues, guest memory, the interrupt to the
//! driver and the worker's epoll set. Used only on the worker's thread. Every index and address in the rings
//! is the guest's.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{QueueOwnedT as _, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::token::Token;
use super::{Chain, Fault};
use crate::memory::Memory;
use crate::virtio::{ActiveQueue, ConfigSpace, Interrupt};

/// The worker's epoll set, to which a data path adds its own descriptors.
#[derive(Debug)]
pub struct Poller(pub(super) Epoll);

impl Poller {
    /// Adds `fd`: from now on, [`super::DataPath::on_event`] is called with `token` (below 2^62) when
    /// `events` occur.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn add(&self, fd: &impl AsRawFd, token: u64, events: EventSet) -> std::io::Result<()> {
        self.control(
            ControlOperation::Add,
            fd.as_raw_fd(),
            events,
            Token::Device(token),
        )
    }

    /// Changes the events that are waited for on `fd`.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn change(&self, fd: &impl AsRawFd, token: u64, events: EventSet) -> std::io::Result<()> {
        self.control(
            ControlOperation::Modify,
            fd.as_raw_fd(),
            events,
            Token::Device(token),
        )
    }

    /// Removes `fd`. Closing its last duplicate has the same effect.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn remove(&self, fd: &impl AsRawFd) -> std::io::Result<()> {
        // The kernel ignores the events and the token of this operation.
        let events = EventSet::empty();
        self.control(ControlOperation::Delete, fd.as_raw_fd(), events, Token::Device(0))
    }

    pub(super) fn control(
        &self,
        operation: ControlOperation,
        fd: RawFd,
        events: EventSet,
        token: Token,
    ) -> std::io::Result<()> {
        self.0.ctl(operation, fd, EpollEvent::new(events, token.encode()))
    }
}

/// A device between activation and reset.
pub struct ActiveDevice {
    /// All of guest memory.
    pub memory: Arc<Memory>,
    /// Features that the driver accepted.
    pub features: u64,
    /// The device's configuration space.
    pub config: Arc<ConfigSpace>,
    /// To add the device's own descriptors to.
    pub poller: Arc<Poller>,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) queues: Vec<ActiveQueue>,
    /// By queue: the index of the used ring at the last [`ActiveDevice::notify`].
    pub(super) notified: Vec<u16>,
}

impl ActiveDevice {
    fn queue(&mut self, index: u16) -> Result<&mut ActiveQueue, Fault> {
        self.queues
            .get_mut(usize::from(index))
            .filter(|active| active.queue.ready())
            .ok_or(Fault::NotReady(index))
    }

    /// Whether the driver has made queue `index` ready.
    #[must_use]
    pub fn is_ready(&self, index: u16) -> bool {
        self.queues
            .get(usize::from(index))
            .is_some_and(|active| active.queue.ready())
    }

    /// The number of descriptors in queue `index`; 0 if it is not ready.
    #[must_use]
    pub fn queue_size(&self, index: u16) -> u16 {
        self.queues
            .get(usize::from(index))
            .map_or(0, |active| active.queue.size())
    }

    /// Takes the next available chain of queue `index` (virtio 1.2, 2.7.13).
    ///
    /// # Errors
    /// [`Fault`] if the available ring is broken.
    pub fn pop(&mut self, index: u16) -> Result<Option<Chain>, Fault> {
        let memory = Arc::clone(&self.memory);
        let mut available = self
            .queue(index)?
            .queue
            .iter(memory)
            .map_err(broken("available ring", index))?;
        Ok(available.next())
    }

    /// Undoes the last [`ActiveDevice::pop`] of queue `index`: the next pop returns the same chain.
    ///
    /// # Errors
    /// [`Fault`] if the queue is not ready.
    pub fn undo_pop(&mut self, index: u16) -> Result<(), Fault> {
        self.undo_pops(index, 1)
    }

    /// Undoes the last `count` pops of queue `index`: the next pops return the same chains in the same order.
    ///
    /// # Errors
    /// [`Fault`] if the queue is not ready.
    pub fn undo_pops(&mut self, index: u16, count: u16) -> Result<(), Fault> {
        let queue = &mut self.queue(index)?.queue;
        queue.set_next_avail(queue.next_avail().wrapping_sub(count));
        Ok(())
    }

    /// Reverts [`ActiveDevice::undo_pops`] without reading the chains again: to be called before any other
    /// pop, by a data path that remembers what it had popped.
    ///
    /// # Errors
    /// [`Fault`] if the queue is not ready.
    pub fn redo_pops(&mut self, index: u16, count: u16) -> Result<(), Fault> {
        let queue = &mut self.queue(index)?.queue;
        queue.set_next_avail(queue.next_avail().wrapping_add(count));
        Ok(())
    }

    /// Puts the chain with head descriptor `head` into the used ring of queue `index`, with `length` bytes
    /// written to it (virtio 1.2, 2.7.14). Does not interrupt the driver; see [`ActiveDevice::notify`].
    ///
    /// # Errors
    /// [`Fault`] if `head` or the used ring is out of bounds.
    pub fn push(&mut self, index: u16, head: u16, length: u32) -> Result<(), Fault> {
        let memory = Arc::clone(&self.memory);
        self.queue(index)?
            .queue
            .add_used(&*memory, head, length)
            .map_err(broken("used ring", index))
    }

    /// Puts several chains into the used ring at once, as [`ActiveDevice::push`] does with one: the driver
    /// sees all of them or none.
    ///
    /// # Errors
    /// [`Fault`] if a head or the used ring is out of bounds.
    pub fn push_all(&mut self, index: u16, chains: &[(u16, u32)]) -> Result<(), Fault> {
        let memory = Arc::clone(&self.memory);
        let queue = &mut self.queue(index)?.queue;
        let Some((last, earlier)) = chains.split_last() else {
            return Ok(());
        };
        let first = queue.next_used();
        for (head, length) in earlier {
            if *head >= queue.size() {
                return Err(broken("used ring", index)(
                    virtio_queue::Error::InvalidDescriptorIndex,
                ));
            }
            let position = u64::from(queue.next_used().checked_rem(queue.size()).unwrap_or_default());
            // The elements, of 8 bytes, follow two fields of 2 bytes (virtio 1.2, 2.7.8).
            let element = queue
                .used_ring()
                .saturating_add(4)
                .saturating_add(position.saturating_mul(8));
            let fields = [u32::from(*head).to_le(), length.to_le()];
            memory
                .write_obj(fields, GuestAddress(element))
                .map_err(|error| broken("used ring", index)(virtio_queue::Error::GuestMemory(error)))?;
            queue.set_next_used(queue.next_used().wrapping_add(1));
        }
        let (head, length) = *last;
        // Writes the last element, and then the index that makes all of them visible.
        let pushed = queue.add_used(&*memory, head, length);
        if pushed.is_err() {
            queue.set_next_used(first);
        }
        pushed.map_err(broken("used ring", index))
    }

    /// Interrupts the driver if it wants an interrupt for a chain pushed to queue `index` since the last call
    /// (virtio 1.2, 2.7.7).
    ///
    /// # Errors
    /// [`Fault`] if the available ring is broken.
    pub fn notify(&mut self, index: u16) -> Result<(), Fault> {
        // The used ring must be complete before the driver's wish is read.
        fence(Ordering::SeqCst);
        let queue = &self.queue(index)?.queue;
        let (new, wanted_at) = (queue.next_used(), self.used_event(index)?);
        let old = self
            .notified
            .get_mut(usize::from(index))
            .map(|notified| std::mem::replace(notified, new));
        // With an event index, the driver wants an interrupt if the used ring has passed it since.
        let wanted = wanted_at.is_none_or(|event| {
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old.unwrap_or(new))
        });
        if wanted {
            self.interrupt.signal_queue(index);
        }
        Ok(())
    }

    /// The driver's used_event of queue `index` (virtio 1.2, 2.7.7); None if event indices were not
    /// negotiated.
    fn used_event(&mut self, index: u16) -> Result<Option<u16>, Fault> {
        let memory = Arc::clone(&self.memory);
        let queue = &self.queue(index)?.queue;
        if !queue.event_idx_enabled() {
            return Ok(None);
        }
        // It follows the ring of heads, each of 2 bytes, and two more fields.
        let at = queue
            .avail_ring()
            .saturating_add(4)
            .saturating_add(u64::from(queue.size()).saturating_mul(2));
        let event = memory.load(GuestAddress(at), Ordering::Relaxed);
        let event = event
            .map_err(|error| broken("available ring", index)(virtio_queue::Error::GuestMemory(error)))?;
        Ok(Some(u16::from_le(event)))
    }

    /// Asks the driver not to kick queue `index` (virtio 1.2, 2.7.10). The driver may kick nevertheless.
    ///
    /// # Errors
    /// [`Fault`] if the used ring is broken.
    pub fn disable_notification(&mut self, index: u16) -> Result<(), Fault> {
        let memory = Arc::clone(&self.memory);
        self.queue(index)?
            .queue
            .disable_notification(&*memory)
            .map_err(broken("used ring", index))
    }

    /// Asks the driver to kick queue `index` for the next chain. Returns true if one is available already,
    /// for which there may be no kick.
    ///
    /// # Errors
    /// [`Fault`] if a ring is broken.
    pub fn enable_notification(&mut self, index: u16) -> Result<bool, Fault> {
        let memory = Arc::clone(&self.memory);
        self.queue(index)?
            .queue
            .enable_notification(&*memory)
            .map_err(broken("rings", index))
    }

    /// Makes the worker call [`super::DataPath::on_queue`] for `index` again, after the other events that are
    /// ready.
    ///
    /// # Errors
    /// [`Fault`] if the queue is not ready or writing its eventfd fails.
    pub fn requeue(&mut self, index: u16) -> Result<(), Fault> {
        self.queue(index)?
            .kick
            .write(1)
            .map_err(Fault::io("write a queue's kick"))
    }

    /// Calls `request` for each available chain of queue `index` and pushes the chain with the number of
    /// bytes that `request` returns. After as many chains as the queue has descriptors, other events come
    /// first, so that a driver that keeps adding chains can't monopolise the worker.
    ///
    /// # Errors
    /// [`Fault`] if a ring is broken.
    pub fn serve(
        &mut self,
        index: u16,
        notify: Notify,
        mut request: impl FnMut(&Arc<Memory>, Chain) -> u32,
    ) -> Result<(), Fault> {
        self.serve_or_keep(index, notify, |memory, chain| Some(request(memory, chain)))
    }

    /// As [`ActiveDevice::serve`], but a chain for which `request` returns None stays with the data path, which
    /// pushes it later.
    ///
    /// # Errors
    /// [`Fault`] if a ring is broken.
    pub fn serve_or_keep(
        &mut self,
        index: u16,
        notify: Notify,
        mut request: impl FnMut(&Arc<Memory>, Chain) -> Option<u32>,
    ) -> Result<(), Fault> {
        let mut left = self.queue_size(index);
        let mut notify_at_end = false;
        loop {
            self.disable_notification(index)?;
            while left > 0
                && let Some(chain) = self.pop(index)?
            {
                let head = chain.head_index();
                left = left.saturating_sub(1);
                let Some(length) = request(&self.memory, chain) else {
                    continue;
                };
                self.push(index, head, length)?;
                match notify {
                    Notify::Each => self.notify(index)?,
                    Notify::AtEnd => notify_at_end = true,
                }
            }
            if left == 0 {
                self.requeue(index)?;
                break;
            }
            if !self.enable_notification(index)? {
                break;
            }
        }
        if notify_at_end { self.notify(index) } else { Ok(()) }
    }
}

/// For `map_err` on an access to the rings of queue `index`.
fn broken(ring: &'static str, index: u16) -> impl FnOnce(virtio_queue::Error) -> Fault {
    move |source| Fault::Ring { index, ring, source }
}

/// When [`ActiveDevice::serve`] interrupts the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notify {
    /// After each chain, because a task of the guest waits for it.
    Each,
    /// After the last available chain: fewer interrupts, if no task of the guest waits for a single chain.
    AtEnd,
}
