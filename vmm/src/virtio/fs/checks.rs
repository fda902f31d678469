//! What the library takes for granted of a request's arguments. Pure; used by [`super::tree`].

use std::ffi::CStr;
use std::io;

/// The kernel's limits on an extended attribute and on a list of names (XATTR_SIZE_MAX, XATTR_LIST_MAX).
pub const MAX_XATTR: u32 = 64 * 1024;

/// The error with this errno.
pub fn refused(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// A name in a directory, and nothing that leads elsewhere.
pub fn checked(name: &CStr) -> io::Result<&CStr> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(refused(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(refused(libc::EINVAL)),
        _ => Ok(name),
    }
}

/// An offset that the kernel's signed one can hold; the library takes that for granted.
pub fn offset(offset: u64) -> io::Result<u64> {
    i64::try_from(offset).map_err(|_| refused(libc::EINVAL))?;
    Ok(offset)
}

/// Open flags without those that make a file or give a descriptor that is none.
pub fn open_flags(flags: u32) -> io::Result<u32> {
    let bits = i32::from_ne_bytes(flags.to_ne_bytes());
    let never = libc::O_CREAT | libc::O_PATH | (libc::O_TMPFILE & !libc::O_DIRECTORY);
    if bits & never == 0 {
        Ok(flags)
    } else {
        Err(refused(libc::EINVAL))
    }
}
