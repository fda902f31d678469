//! Moves bytes between two descriptors within the kernel. Called by the copies of streams and of forwarded
//! connections; waits for neither side.

use std::io;
use std::os::fd::AsFd;

use rustix::io::{Errno, retry_on_intr};
use rustix::pipe::{SpliceFlags, splice};

/// Most bytes of one splice: the default capacity of a pipe.
const CHUNK: usize = 64 * 1024;

/// Splices once; returns the number of bytes, 0 at the end of `from`, or None if one of the two blocks.
///
/// # Errors
/// As splice(2).
pub fn splice_once(from: impl AsFd, to: impl AsFd) -> io::Result<Option<usize>> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    match retry_on_intr(|| splice(&from, None, &to, None, CHUNK, flags)) {
        Ok(length) => Ok(Some(length)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
