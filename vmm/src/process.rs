//! How the process ends. Used by the main thread once nothing is left to report.

/// Ends the process with `code` at once, by exit_group(2): no destructor runs, no exit handler, and no other thread is
/// waited for. A worker that hangs in a system call to a broken host file system can't delay it.
#[allow(unsafe_code, reason = "_exit is a foreign function")]
pub fn exit_now(code: u8) -> ! {
    // SAFETY: _exit takes any number and never returns. What destructors would have done is the kernel's work: it
    // closes descriptors and frees memory. Standard output and standard error are flushed at each write.
    unsafe { libc::_exit(i32::from(code)) }
}
