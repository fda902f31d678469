//! The session keyring of a container, as with runc: its processes share one, and have no other container's.
//! Called by the child that becomes a container's init, and by the one that becomes an exec process, both
//! before they enter the container's namespaces: the kernel finds a keyring by its name only in the user
//! namespace in which it was made.
#![allow(unsafe_code, reason = "keyctl(2) has no safe wrapper")]

use std::ffi::CString;
use std::io;

use libc::{c_int, c_long, c_ulong};

/// Operations of keyctl(2).
const JOIN_SESSION_KEYRING: c_int = 1;
const SETPERM: c_int = 5;
/// All permissions for the possessor; view, read, search and link for the owner. The kernel's default lacks
/// search, without which an exec process does not find the keyring by its name.
const PERMISSIONS: c_ulong = 0x3f1b_0000;

/// Makes the session keyring of container `id` and makes it the caller's.
///
/// # Errors
/// The errno of keyctl(2), except ENOSYS: a kernel without keyrings has nothing to separate.
pub fn create(id: &str) -> io::Result<()> {
    let Some(keyring) = join(id)? else {
        return Ok(());
    };
    let number = c_ulong::try_from(keyring).map_err(io::Error::other)?;
    // SAFETY: the arguments are integers.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, SETPERM, number, PERMISSIONS) };
    outcome(result).map(drop)
}

/// Makes the session keyring of container `id` the caller's, and returns its serial number. None: the kernel
/// has no keyrings.
///
/// # Errors
/// As [`create`].
pub fn join(id: &str) -> io::Result<Option<c_long>> {
    let name = CString::new(format!("_ses.{id}"))?;
    // SAFETY: `name` is a string that ends with NUL and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) };
    outcome(result)
}

fn outcome(result: c_long) -> io::Result<Option<c_long>> {
    if result >= 0 {
        return Ok(Some(result));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(None),
        error => Err(error),
    }
}
