//! Operations on a disk by system calls, one after the other, for hosts without io_uring. Used by
//! [`super::engine`].
#![allow(unsafe_code, reason = "preadv and pwritev on guest memory")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd as _;

use super::disk::Disk;
use super::request::{Operation, Request};
use super::{PUNCH_HOLE, ZERO_RANGE};
use crate::virtio::vectors::Vectors;

/// A disk, and the results that were not returned.
pub struct Blocking {
    disk: Disk,
    results: VecDeque<(u16, io::Result<usize>)>,
}

impl Blocking {
    pub fn new(disk: Disk) -> Self {
        Self {
            disk,
            results: VecDeque::new(),
        }
    }

    /// Carries out an operation, whose result has the number `id`.
    pub fn run(&mut self, id: u16, step: Request, data: &Vectors) {
        let result = loop {
            match self.call(step, data) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.results.push_back((id, result));
    }

    /// Whether a result was not returned.
    pub fn has_results(&self) -> bool {
        !self.results.is_empty()
    }

    /// The next result: an operation's number, and how many bytes it read or wrote.
    pub fn next_result(&mut self) -> Option<(u16, io::Result<usize>)> {
        self.results.pop_front()
    }

    fn call(&self, step: Request, data: &Vectors) -> io::Result<usize> {
        let fd = self.disk.as_raw_fd();
        let (list, count) = data.first(data.len());
        // A request lies within the disk, whose size is a file's: below 2^63.
        let offset = step.offset.cast_signed();
        let length = step.length.cast_signed();
        let result = match step.operation {
            // SAFETY: each vector is a range of guest memory, which `data` keeps mapped. The guest may access it
            // at the same time, so no reference to it exists.
            Operation::Read => unsafe { libc::preadv(fd, list, count, offset) },
            // SAFETY: as above; the kernel only reads.
            Operation::Write => unsafe { libc::pwritev(fd, list, count, offset) },
            // SAFETY: no memory is involved.
            Operation::Flush => unsafe { libc::fdatasync(fd) as isize },
            // SAFETY: no memory is involved.
            Operation::Discard => unsafe { libc::fallocate(fd, PUNCH_HOLE, offset, length) as isize },
            // SAFETY: no memory is involved.
            Operation::WriteZeroes => unsafe { libc::fallocate(fd, ZERO_RANGE, offset, length) as isize },
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}
