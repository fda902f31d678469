//! Requests in progress, from a parsed chain to a status. Used by the data path only, on the worker's thread.
//!
//! A request takes a slot, which keeps its buffers mapped until it has ended. It may take several operations of
//! the host: a read or write that the host carries out in part is continued, and a write is followed by a flush
//! if the driver does not flush itself. The operations are [`Ring`]'s, or, where the host has no io_uring,
//! [`Blocking`]'s.
#![allow(unsafe_code, reason = "the slots keep what the ring's operations access")]

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::blocking::Blocking;
use super::disk::Disk;
use super::request::{Operation, Request};
use super::ring::Ring;
use crate::memory::Memory;
use crate::virtio::vectors::Vectors;

/// A chain of the driver that holds a request.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// The index of its queue.
    pub queue: u16,
    /// Its head descriptor.
    pub head: u16,
}

/// A request that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its chain.
    pub origin: Origin,
    /// The request.
    pub request: Request,
    /// Why it failed, if it did.
    pub result: io::Result<()>,
}

/// Requests in progress on one disk.
pub struct Engine {
    /// Declared before the slots: dropping it waits for its operations, which access what the slots keep.
    host: Host,
    slots: Vec<Slot>,
    /// The slots without a request; the one that was used last is taken first.
    free: Vec<u16>,
    /// How many slots there may be.
    capacity: u16,
    /// A write ends when it is on stable storage, because the driver does not flush (virtio 1.2, 5.2.6.2).
    is_writethrough: bool,
}

/// Who carries out operations.
enum Host {
    Ring(Box<Ring>),
    Blocking(Blocking),
}

struct Slot {
    /// None if the slot is free.
    in_progress: Option<InProgress>,
    /// The buffers of a read or a write that are left.
    data: Vectors,
}

#[derive(Clone, Copy)]
struct InProgress {
    origin: Origin,
    request: Request,
    /// The present operation, which is a part of the request, or its flush.
    step: Request,
}

impl Engine {
    /// An engine with up to `capacity` requests at once; by io_uring if `io_uring` is true and the host has it.
    pub fn new(disk: Disk, capacity: u16, io_uring: bool) -> Self {
        let ring = if io_uring {
            Ring::new(disk, capacity)
        } else {
            Err(disk)
        };
        Self {
            host: ring.map_or_else(
                |disk| Host::Blocking(Blocking::new(disk)),
                |ring| Host::Ring(Box::new(ring)),
            ),
            slots: Vec::new(),
            free: Vec::new(),
            capacity,
            is_writethrough: false,
        }
    }

    /// Whether each write is followed by a flush.
    pub fn set_writethrough(&mut self, is_writethrough: bool) {
        self.is_writethrough = is_writethrough;
    }

    /// What becomes readable when operations end; None if they end before [`Engine::start`] returns.
    pub fn completions(&self) -> Option<RawFd> {
        match &self.host {
            Host::Ring(ring) => Some(ring.fd()),
            Host::Blocking(_) => None,
        }
    }

    /// Finds a slot for a request and returns it with its empty list of buffers; None if all are taken.
    pub fn slot(&mut self, memory: &Arc<Memory>) -> Option<(u16, &mut Vectors)> {
        let index = match self.free.last() {
            Some(index) => *index,
            None => self.add_slot(memory)?,
        };
        let data = &mut self.slots.get_mut(usize::from(index))?.data;
        data.set_memory(memory);
        data.truncate(0);
        Some((index, data))
    }

    /// Adds a free slot, whose list of buffers is allocated when it is filled.
    fn add_slot(&mut self, memory: &Arc<Memory>) -> Option<u16> {
        let index = u16::try_from(self.slots.len()).ok()?;
        let index = (index < self.capacity).then_some(index)?;
        self.slots.push(Slot {
            in_progress: None,
            data: Vectors::with_capacity(Arc::clone(memory), 0),
        });
        self.free.push(index);
        Some(index)
    }

    /// Starts `request`, whose buffers are in `slot`, which must be the last one that [`Engine::slot`] returned.
    /// It is passed to the host at the latest with the next [`Engine::next_ended`], together with others.
    pub fn start(&mut self, slot: u16, origin: Origin, request: Request) {
        if let Some(position) = self.free.iter().rposition(|free| *free == slot) {
            self.free.swap_remove(position);
        }
        if let Some(entry) = self.slots.get_mut(usize::from(slot)) {
            entry.in_progress = Some(InProgress {
                origin,
                request,
                step: request,
            });
        }
        self.run(slot);
    }

    /// Passes the operation of `slot` to the host.
    fn run(&mut self, slot: u16) {
        let Some(entry) = self.slots.get(usize::from(slot)) else {
            return;
        };
        let Some(InProgress { step, .. }) = entry.in_progress else {
            return;
        };
        match &mut self.host {
            // SAFETY: the slot is taken until the operation has ended, and its buffers are neither changed nor
            // dropped before that; slots are dropped after the ring.
            Host::Ring(ring) => unsafe { ring.add(slot, step, &entry.data) },
            Host::Blocking(blocking) => blocking.run(slot, step, &entry.data),
        }
    }

    /// Waits until an operation has ended, or none is in progress: then it returns false.
    ///
    /// # Errors
    /// As io_uring_enter(2).
    pub fn wait(&mut self) -> io::Result<bool> {
        match &mut self.host {
            Host::Ring(ring) => ring.wait(),
            Host::Blocking(blocking) => Ok(blocking.has_results()),
        }
    }

    /// The next request that has ended, if there is one. Passes operations that were started to the host, and
    /// continues requests that have not ended.
    ///
    /// # Errors
    /// As io_uring_enter(2).
    pub fn next_ended(&mut self) -> io::Result<Option<Ended>> {
        loop {
            let result = match &mut self.host {
                Host::Ring(ring) => ring.next_result()?,
                Host::Blocking(blocking) => blocking.next_result(),
            };
            let Some((slot, result)) = result else {
                return Ok(None);
            };
            if let Some(ended) = self.on_result(slot, result) {
                return Ok(Some(ended));
            }
        }
    }

    /// Continues the request of `slot` after an operation, or returns it if it has ended.
    fn on_result(&mut self, slot: u16, result: io::Result<usize>) -> Option<Ended> {
        let entry = self.slots.get_mut(usize::from(slot))?;
        let in_progress = entry.in_progress?;
        if let Some(step) = in_progress.next(&result, self.is_writethrough) {
            entry.data.advance(result.unwrap_or_default());
            entry.in_progress = Some(InProgress { step, ..in_progress });
            self.run(slot);
            return None;
        }
        entry.in_progress = None;
        self.free.push(slot);
        Some(Ended {
            origin: in_progress.origin,
            request: in_progress.request,
            result: in_progress.outcome(result),
        })
    }
}

impl InProgress {
    /// The next operation after one with `result`; None if the request has ended.
    fn next(&self, result: &io::Result<usize>, is_writethrough: bool) -> Option<Request> {
        let step = self.step;
        let done = match (result, step.operation) {
            (Ok(done), Operation::Read | Operation::Write) => *done as u64,
            _ => return None,
        };
        let left = step.length.saturating_sub(done);
        if left > 0 {
            // Nothing at all was transferred: the file has become shorter.
            return (done > 0).then(|| Request {
                offset: step.offset.saturating_add(done),
                length: left,
                ..step
            });
        }
        (is_writethrough && step.operation == Operation::Write).then_some(Request {
            operation: Operation::Flush,
            offset: 0,
            length: 0,
            ..step
        })
    }

    /// The result of the request whose last operation had `result`.
    fn outcome(&self, result: io::Result<usize>) -> io::Result<()> {
        match (result?, self.step.operation) {
            (0, Operation::Read | Operation::Write) => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    fn in_progress(operation: Operation) -> InProgress {
        let request = Request {
            operation,
            offset: 4096,
            length: 1024,
            status: GuestAddress(0),
        };
        InProgress {
            origin: Origin { queue: 0, head: 0 },
            request,
            step: request,
        }
    }

    #[test]
    fn a_part_is_continued_where_it_ended() {
        let next = in_progress(Operation::Read).next(&Ok(1000), true).unwrap();
        assert_eq!(
            (next.operation, next.offset, next.length),
            (Operation::Read, 5096, 24)
        );
        assert_eq!(in_progress(Operation::Read).next(&Ok(1024), true), None);
    }

    #[test]
    fn a_write_is_flushed_only_if_the_driver_does_not_flush() {
        let write = in_progress(Operation::Write);
        assert_eq!(write.next(&Ok(1024), false), None);
        let flush = write.next(&Ok(1024), true).unwrap();
        assert_eq!(flush.operation, Operation::Flush);
        let flushing = InProgress { step: flush, ..write };
        assert_eq!(flushing.next(&Ok(0), true), None);
        assert!(flushing.outcome(Ok(0)).is_ok());
    }

    #[test]
    fn the_end_of_the_file_is_an_error() {
        let read = in_progress(Operation::Read);
        assert_eq!(read.next(&Ok(0), false), None);
        assert_eq!(
            read.outcome(Ok(0)).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert!(in_progress(Operation::Discard).outcome(Ok(0)).is_ok());
    }
}
