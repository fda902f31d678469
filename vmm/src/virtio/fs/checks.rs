//! Checks of request arguments that virtiofsd's library does not make itself. Pure; used by [`super::tree`].

use std::ffi::CStr;
use std::io;

/// The kernel's limits on the value of an extended attribute and on a list of their names, in bytes
/// (XATTR_SIZE_MAX, XATTR_LIST_MAX).
pub const MAX_XATTR: u32 = 64 * 1024;

/// An error that the guest sees as `number`, such as `libc::EINVAL`.
pub fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// Rejects a name that is not a single path component: empty, ".", ".." or with a slash.
pub fn checked_name(name: &CStr) -> io::Result<&CStr> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(errno(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(errno(libc::EINVAL)),
        _ => Ok(name),
    }
}

/// Rejects an offset or length that does not fit the kernel's signed off_t.
pub fn checked_offset(offset: u64) -> io::Result<u64> {
    i64::try_from(offset).map_err(|_| errno(libc::EINVAL))?;
    Ok(offset)
}

/// Rejects open flags that create a file or return a descriptor without access to the file's data (O_PATH).
pub fn checked_open_flags(flags: u32) -> io::Result<u32> {
    let bits = i32::from_ne_bytes(flags.to_ne_bytes());
    let forbidden = libc::O_CREAT | libc::O_PATH | (libc::O_TMPFILE & !libc::O_DIRECTORY);
    if bits & forbidden == 0 {
        Ok(flags)
    } else {
        Err(errno(libc::EINVAL))
    }
}
