//! A tap of the host, and the buffers in guest memory that packets are read into and written from. Used by
//! the data path only. One system call per packet; the kernel copies it between its own buffer and the
//! guest's pages, and nobody else does.
#![allow(
    unsafe_code,
    reason = "readv and writev on guest memory, ioctls of /dev/net/tun"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::virtio::vectors::Vectors;

/// The size of the header before each packet (virtio 1.2, 5.1.6), in bytes.
pub const HEADER_BYTES: u32 = 12;
/// IFF_TUN and IFF_TAP: the kinds of interface.
const TUN: u16 = 0x0001;
const TAP: u16 = 0x0002;
/// A tap with IFF_NO_PI, no header of its own, and IFF_VNET_HDR, virtio's header.
const FLAGS: u16 = TAP | 0x1000 | 0x4000;
/// IFF_MULTI_QUEUE: an interface that may have several queues.
const MULTI_QUEUE: u16 = 0x0100;
/// IFF_ATTACH_QUEUE and IFF_DETACH_QUEUE.
const ATTACH: libc::c_short = 0x0200;
const DETACH: libc::c_short = 0x0400;

/// Why a descriptor is not the tap that the device needs.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// An ioctl failed: it is not an open network interface of /dev/net/tun.
    #[error("{operation}: {source}")]
    Io {
        /// The ioctl's purpose.
        operation: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The interface has other flags.
    #[error("expected a tap with IFF_NO_PI and IFF_VNET_HDR, got an interface with the flags {0:#x}")]
    Flags(u16),
}

/// An open tap, non-blocking, whose packets have a header of [`HEADER_BYTES`].
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    /// A test uses a socket, on which ioctls fail.
    #[cfg(any(test, feature = "fuzzing"))]
    is_socket: bool,
}

impl Tap {
    /// Checks that `fd` is a tap with the right flags, makes it non-blocking and sets the header's size.
    ///
    /// # Errors
    /// [`TapError`] if it is something else.
    pub fn new(fd: OwnedFd) -> Result<Self, TapError> {
        let at = |operation| move |source| TapError::Io { operation, source };
        let flags = interface_flags(&fd).map_err(at("read the tap's flags"))?;
        if flags & (FLAGS | TUN) != FLAGS {
            return Err(TapError::Flags(flags));
        }
        rustix::io::ioctl_fionbio(&fd, true)
            .map_err(|error| at("make the tap non-blocking")(error.into()))?;
        let size = libc::c_int::try_from(HEADER_BYTES).unwrap_or_default();
        // SAFETY: the kernel reads an int.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) };
        check(done).map_err(at("set the size of the tap's header"))?;
        Ok(Self {
            fd,
            #[cfg(any(test, feature = "fuzzing"))]
            is_socket: false,
        })
    }

    /// A socket with message boundaries that takes the place of a tap.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn from_socket(fd: OwnedFd) -> Self {
        rustix::io::ioctl_fionbio(&fd, true).unwrap();
        Self { fd, is_socket: true }
    }

    /// Sets which work the host may leave to the guest: the TUN_F_* flags.
    ///
    /// # Errors
    /// As the ioctl TUNSETOFFLOAD.
    pub fn set_offload(&self, flags: u32) -> io::Result<()> {
        // SAFETY: the argument is a number; no memory is involved.
        let done = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(flags),
            )
        };
        #[cfg(any(test, feature = "fuzzing"))]
        if self.is_socket {
            return Ok(());
        }
        check(done)
    }

    /// Whether the host gives packets to this queue of an interface with several (IFF_MULTI_QUEUE).
    ///
    /// # Errors
    /// As the ioctl TUNSETQUEUE.
    pub fn set_attached(&self, is_attached: bool) -> io::Result<()> {
        // SAFETY: `ifreq` is plain data, for which zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = if is_attached { ATTACH } else { DETACH };
        // SAFETY: the kernel reads one `ifreq`.
        let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) };
        #[cfg(any(test, feature = "fuzzing"))]
        if self.is_socket {
            return Ok(());
        }
        check(done)
    }

    /// Reads one packet with its header into `buffers`. Returns its length, or that of the buffers if it is
    /// longer; the rest is then lost.
    ///
    /// # Errors
    /// As readv(2): [`io::ErrorKind::WouldBlock`] if there is none.
    pub fn read(&self, buffers: &Vectors) -> io::Result<u32> {
        self.read_first(buffers, buffers.len())
    }

    /// As [`Tap::read`], into the first `count` of `buffers`.
    ///
    /// # Errors
    /// As [`Tap::read`].
    pub fn read_first(&self, buffers: &Vectors, count: usize) -> io::Result<u32> {
        let (list, count) = buffers.first(count);
        // SAFETY: each vector is a range of guest memory, which `buffers` keeps mapped. The guest may access
        // it at the same time, so no reference to it exists.
        length(unsafe { libc::readv(self.fd.as_raw_fd(), list, count) })
    }

    /// Writes one packet with its header from `buffers`.
    ///
    /// # Errors
    /// As writev(2): [`io::ErrorKind::WouldBlock`] if the tap is full.
    pub fn write(&self, buffers: &Vectors) -> io::Result<u32> {
        let (list, count) = buffers.first(buffers.len());
        // SAFETY: as in `read_first`; the kernel only reads.
        length(unsafe { libc::writev(self.fd.as_raw_fd(), list, count) })
    }

    /// Reads a packet and drops it.
    ///
    /// # Errors
    /// As read(2): [`io::ErrorKind::WouldBlock`] if there is none.
    pub fn discard(&self) -> io::Result<()> {
        let mut start = [0; HEADER_BYTES as usize];
        rustix::io::read(&self.fd, &mut start)?;
        Ok(())
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn length(result: isize) -> io::Result<u32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::try_from(result).unwrap_or(u32::MAX))
}

/// Opens a queue of the tap `name`, and creates it if there is none, with what the device needs. A tap of which
/// several queues are opened must have been created for that (`has_many`). For a VMM without a shim, which opens
/// taps itself.
///
/// # Errors
/// As open(2) of /dev/net/tun and the ioctl TUNSETIFF.
pub fn open_tap(name: &str, has_many: bool) -> io::Result<OwnedFd> {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: `ifreq` is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let many = if has_many { MULTI_QUEUE } else { 0 };
    request.ifr_ifru.ifru_flags = (FLAGS | many).cast_signed();
    // SAFETY: the kernel reads and writes one `ifreq`.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(file.into())
}

/// The flags of the interface behind `fd` (TUNGETIFF).
fn interface_flags(fd: &OwnedFd) -> io::Result<u16> {
    // SAFETY: `ifreq` is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `ifreq`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF sets the flags; any bits are valid.
    Ok(unsafe { request.ifr_ifru.ifru_flags }.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_tap_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let error = Tap::new(file.into()).unwrap_err().to_string();
        assert!(error.contains("read the tap's flags"), "{error}");
    }
}
