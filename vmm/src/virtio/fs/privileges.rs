//! Lets the host's kernel take set-user-ID and set-group-ID bits away from a file, as it does when a process
//! without CAP_FSETID writes to it. Used by [`super::operations`] where the guest says that its process has
//! no such capability.
//!
//! The library would do the same by libcap-ng, which remembers the thread's capabilities as they were the
//! last time that it created a file as a user: without CAP_FSETID, so that it would no longer drop it.

use std::io;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// Calls `action`, without CAP_FSETID if `kill_priv`.
///
/// # Errors
/// That of `action`, or of capget(2) and capset(2).
pub fn without_fsetid<T>(kill_priv: bool, action: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if !kill_priv {
        return action();
    }
    let sets = capabilities(None)?;
    let mut reduced = sets;
    reduced.effective.remove(CapabilitySet::FSETID);
    set_capabilities(None, reduced)?;
    let result = action();
    // They are permitted, so this does not fail. If it did, the file server would be of no use any more.
    set_capabilities(None, sets)?;
    result
}
