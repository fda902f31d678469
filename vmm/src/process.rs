//! How the process ends. Used by the main thread.

/// Ends the process with `code` at once, by exit_group(2): no destructor and no exit handler runs, and no
/// other thread is waited for, so a worker that hangs in a system call to a broken host file system can't
/// delay the exit.
#[allow(unsafe_code, reason = "_exit is a foreign function")]
pub fn exit_now(code: u8) -> ! {
    // SAFETY: _exit accepts any status and never returns. The kernel closes descriptors and frees memory;
    // standard output and standard error are flushed after each write.
    unsafe { libc::_exit(i32::from(code)) }
}
