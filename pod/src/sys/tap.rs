//! Taps: Ethernet links whose frames a program reads and writes. Made by the pod's network, in a forked child.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// The header of each packet, `struct virtio_net_hdr_v1`, as the VMM's device has it.
const HEADER_BYTES: libc::c_int = 12;

/// A tap of the network namespace that the process is in. It is removed when all descriptors of its queues
/// are closed.
#[derive(Debug)]
pub struct Tap {
    /// Its name.
    pub name: String,
    /// One descriptor per queue pair, non-blocking.
    pub queues: Vec<OwnedFd>,
}

impl Tap {
    /// Makes a tap with `queue_pairs` queue pairs. A "%d" in `name` becomes the first free number.
    ///
    /// # Errors
    /// As TUNSETIFF, or if there is no /dev/net/tun.
    pub fn make(name: &str, queue_pairs: u8) -> io::Result<Self> {
        let mut name = name.to_owned();
        let mut queues = Vec::new();
        for _ in 0..queue_pairs.max(1) {
            let file = open()?;
            name = attach(&file, &name, queue_pairs > 1)?;
            queues.push(file.into());
        }
        Ok(Self { name, queues })
    }
}

fn open() -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open("/dev/net/tun", flags, Mode::empty());
    let file = file.map_err(|error| io::Error::other(format!("/dev/net/tun: {error}")))?;
    Ok(file.into())
}

/// Makes `file` a queue of the tap `name`; returns the tap's full name.
fn attach(file: &File, name: &str, is_one_of_several: bool) -> io::Result<String> {
    // SAFETY: ifreq is plain data; zero in every byte is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    for (place, byte) in request
        .ifr_name
        .iter_mut()
        .take(libc::IFNAMSIZ - 1)
        .zip(name.bytes())
    {
        *place = byte.cast_signed();
    }
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if is_one_of_several {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which lives here.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let header = HEADER_BYTES;
    // SAFETY: TUNSETVNETHDRSZ reads an int, which lives here.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })?;
    let bytes = request.ifr_name.map(i8::cast_unsigned);
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    Ok(String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned())
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
