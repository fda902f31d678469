//! The stack of a thread, the signal of a vCPU's thread, how a panic is described, and how the process ends. Used
//! by the main thread and by each thread's outermost function.

use std::any::Any;

/// Bytes of stack of each thread but the main one. Less than a huge page: with the usual 2 MiB, whether the
/// kernel puts one under a stack depends on its address, and a VMM's own memory is then 2 MiB larger in some
/// runs.
pub const THREAD_STACK: usize = 1 << 20;

/// Makes a vCPU's thread leave the guest. A real-time signal that no C library uses for itself: glibc
/// reserves 32 and 33, musl also 34.
pub const KICK_SIGNAL: libc::c_int = 40;

/// Ends the process with `code` at once, by exit_group(2): no destructor and no exit handler runs, and no
/// other thread is joined. A worker that hangs in a system call to a broken host file system is killed.
///
/// If that system call can't be interrupted even by SIGKILL, such as one to a FUSE server that has received
/// the request, the kernel keeps the process and its descriptors until the call returns. The shim therefore
/// can't wait for the control socket to close: its deadline starts at the last message.
#[allow(unsafe_code, reason = "_exit is a foreign function")]
pub fn exit_now(code: u8) -> ! {
    // SAFETY: _exit accepts any status and never returns. The kernel closes descriptors and frees memory;
    // standard output and standard error are flushed after each write.
    unsafe { libc::_exit(i32::from(code)) }
}

/// The message of a panic, from the payload that `catch_unwind` or `join` returned.
#[must_use]
pub fn panic_text(payload: &(dyn Any + Send)) -> &str {
    // panic!("literal") has a &str, panic!("with {arguments}") a String.
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_panic_is_kept_with_and_without_arguments() {
        let text = |panics: fn()| panic_text(&*std::panic::catch_unwind(panics).unwrap_err()).to_owned();
        assert_eq!(text(|| panic!("a literal")), "a literal");
        assert_eq!(
            text(|| panic!("formatted: {}", std::process::id() / u32::MAX)),
            "formatted: 0"
        );
        assert_eq!(text(|| std::panic::panic_any(7)), "panic without a message");
    }
}
