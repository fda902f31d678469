//! Operations on a disk by io_uring: many are in progress at once, and those that need not wait end where they
//! are submitted. Used by [`super::engine`].
//!
//! io_uring's operations pass no seccomp filter. So the ring is restricted before it is enabled: it can read,
//! write, flush and deallocate one file, and nothing else, whoever submits to it.
#![allow(unsafe_code, reason = "submissions read and write guest memory")]

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode};

use super::disk::Disk;
use super::request::{Operation, Request};
use super::{PUNCH_HOLE, ZERO_RANGE};
use crate::virtio::vectors::Vectors;

/// The disk, the ring's only file.
const DISK: Fixed = Fixed(0);
/// What may be submitted.
const OPERATIONS: [u8; 4] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

/// A ring with its disk. Dropping it waits for the operations in progress.
pub struct Ring {
    ring: IoUring,
    /// Operations that were added and whose results were not returned.
    in_progress: usize,
}

impl Ring {
    /// A ring for up to `capacity` operations at once.
    ///
    /// # Errors
    /// The disk, if the host has no io_uring, or an old one without restrictions (Linux 5.10).
    pub fn new(disk: Disk, capacity: u16) -> Result<Self, Disk> {
        match restricted_ring(&disk, capacity) {
            // The ring keeps the file open.
            Ok(ring) => Ok(Self { ring, in_progress: 0 }),
            Err(_) => Err(disk),
        }
    }

    /// Becomes readable when an operation ends.
    pub fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Adds an operation, whose result has the number `id`. There is always room: no more than the capacity are
    /// in progress.
    ///
    /// # Safety
    /// Until the result is returned or the ring is dropped, `data` is neither changed nor dropped.
    pub unsafe fn add(&mut self, id: u16, step: Request, data: &Vectors) {
        let entry = entry(step, data).user_data(id.into()).flags(Flags::FIXED_FILE);
        // SAFETY: the entry's pointer is that of `data`, and the buffers are ranges of guest memory, which `data`
        // keeps mapped; the caller keeps `data`. The guest may access them at the same time, so no reference to
        // them exists.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            self.in_progress = self.in_progress.saturating_add(1);
        }
    }

    /// Submits what was added, and waits until there is a result; false if no operation is in progress.
    ///
    /// # Errors
    /// As io_uring_enter(2).
    pub fn wait(&mut self) -> io::Result<bool> {
        self.submit()?;
        while self.in_progress > 0 && self.ring.completion().is_empty() {
            self.enter(1)?;
        }
        Ok(self.in_progress > 0)
    }

    /// Submits what was added.
    fn submit(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            self.enter(0)?;
        }
        Ok(())
    }

    /// Submits what was added, and waits for `results` results or a signal.
    fn enter(&mut self, results: usize) -> io::Result<()> {
        match self.ring.submit_and_wait(results) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// The next result, if there is one: an operation's number, and how many bytes it read or wrote. Submits what
    /// was added, if there is none.
    ///
    /// # Errors
    /// As io_uring_enter(2).
    pub fn next_result(&mut self) -> io::Result<Option<(u16, io::Result<usize>)>> {
        if self.ring.completion().is_empty() {
            self.submit()?;
        }
        Ok(self.take_result())
    }

    fn take_result(&mut self) -> Option<(u16, io::Result<usize>)> {
        let completion = self.ring.completion().next()?;
        self.in_progress = self.in_progress.saturating_sub(1);
        let id = u16::try_from(completion.user_data()).ok()?;
        let result = usize::try_from(completion.result())
            .map_err(|_| io::Error::from_raw_os_error(completion.result().saturating_neg()));
        Some((id, result))
    }
}

impl Drop for Ring {
    /// The host accesses guest memory until its operations have ended.
    fn drop(&mut self) {
        while self.wait().unwrap_or(false) {
            self.take_result();
        }
    }
}

/// A ring that can do [`OPERATIONS`] with the disk, and nothing else.
fn restricted_ring(disk: &Disk, capacity: u16) -> io::Result<IoUring> {
    let ring = IoUring::builder()
        .setup_r_disabled()
        .build(u32::from(capacity).max(1))?;
    // Since Linux 5.5: what an entry points to need not stay after it was submitted.
    if !ring.params().is_feature_submit_stable() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let submitter = ring.submitter();
    submitter.register_files(&[disk.as_raw_fd()])?;
    let operations = OPERATIONS.into_iter().map(Restriction::sqe_op);
    let required = Restriction::sqe_flags_required(Flags::FIXED_FILE.bits());
    let mut restrictions: Vec<_> = operations.chain([required]).collect();
    submitter.register_restrictions(&mut restrictions)?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

fn entry(step: Request, data: &Vectors) -> Entry {
    let (list, count) = data.first(data.len());
    let count = count.unsigned_abs();
    match step.operation {
        Operation::Read => opcode::Readv::new(DISK, list, count).offset(step.offset).build(),
        Operation::Write => opcode::Writev::new(DISK, list, count).offset(step.offset).build(),
        Operation::Flush => opcode::Fsync::new(DISK).flags(FsyncFlags::DATASYNC).build(),
        Operation::Discard => fallocate(step, PUNCH_HOLE),
        Operation::WriteZeroes => fallocate(step, ZERO_RANGE),
    }
}

fn fallocate(step: Request, mode: i32) -> Entry {
    opcode::Fallocate::new(DISK, step.length)
        .offset(step.offset)
        .mode(mode)
        .build()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_ring_opens_no_other_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; 4096]).unwrap();
        let disk = Disk::new(file.into(), false).unwrap();
        let Ok(mut ring) = Ring::new(disk, 4) else {
            return println!("skipped: no io_uring");
        };
        let other = File::open("/dev/null").unwrap();
        let path = c"/dev/null";
        let refused = [
            opcode::Nop::new().build(),
            opcode::Nop::new().build().flags(Flags::FIXED_FILE),
            opcode::OpenAt::new(io_uring::types::Fd(libc::AT_FDCWD), path.as_ptr()).build(),
            opcode::Fsync::new(io_uring::types::Fd(other.as_raw_fd())).build(),
        ];
        for entry in refused {
            // SAFETY: the path outlives the operation, which ends below.
            unsafe { ring.ring.submission().push(&entry) }.unwrap();
            ring.in_progress += 1;
            assert!(ring.wait().unwrap());
            let (_, result) = ring.take_result().unwrap();
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EACCES));
        }
        assert!(
            ring.ring
                .submitter()
                .register_files(&[other.as_raw_fd()])
                .is_err()
        );
    }
}
