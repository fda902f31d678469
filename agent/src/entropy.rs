//! Seeds the kernel's random number generator with bytes of the host, which come with Setup. Called by an
//! agent that is PID 1 of a guest, before any container exists; never by one that runs standalone. Logs no
//! bytes.
//!
//! All guests that continue from one template have its generator. The VM generation id tells the kernel that
//! it is in another machine, and it reseeds, but in a kernel thread. When [`seed`] returns, every number that
//! is drawn depends on the host's bytes.
#![allow(unsafe_code, reason = "the ioctls of random(4) have no safe wrapper")]

use std::fs::File;
use std::os::fd::AsRawFd as _;

use libc::c_int;

use crate::error::Error;

const DEVICE: &str = "/dev/urandom";
/// Fewest bytes: with 256 bits the kernel's generator is ready (POOL_READY_BITS), which reseeding requires.
const MIN: usize = 32;
/// Most bytes.
const MAX: usize = 512;

/// `struct rand_pool_info` of linux/random.h.
#[repr(C)]
struct Pool {
    /// The entropy in bits.
    entropy_count: c_int,
    /// The number of bytes.
    buf_size: c_int,
    buf: [u8; MAX],
}

nix::ioctl_write_ptr_bad!(
    /// RNDADDENTROPY: mixes bytes into the input pool, and credits them.
    add_entropy,
    nix::request_code_write!(b'R', 3, size_of::<[c_int; 2]>()),
    Pool
);
nix::ioctl_none!(
    /// RNDRESEEDCRNG: makes a new key from the input pool.
    reseed,
    b'R',
    7
);

/// Seeds the generator with `bytes`.
///
/// # Errors
/// INVALID_ARGUMENT for too few or too many bytes; that of the step otherwise.
pub fn seed(bytes: &[u8]) -> Result<(), Error> {
    let pool = pool(bytes)?;
    let device = File::open(DEVICE).map_err(Error::file("opening", DEVICE))?;
    // SAFETY: the descriptor is open. The kernel reads two integers and `buf_size` bytes, which `pool` has;
    // it outlives the call.
    unsafe { add_entropy(device.as_raw_fd(), &raw const pool) }
        .map_err(Error::file("adding entropy to", DEVICE))?;
    // SAFETY: the descriptor is open, and the request has no argument.
    unsafe { reseed(device.as_raw_fd()) }
        .map(drop)
        .map_err(Error::file("reseeding", DEVICE))
}

/// The argument of [`add_entropy`].
fn pool(bytes: &[u8]) -> Result<Pool, Error> {
    let length = bytes.len();
    let mut buf = [0; MAX];
    let range = buf.get_mut(..length).filter(|_| length >= MIN);
    let (Some(range), Ok(buf_size)) = (range, c_int::try_from(length)) else {
        return Err(Error::BadRequest {
            what: format!("entropy: expected {MIN} to {MAX} bytes, got {length}"),
        });
    };
    range.copy_from_slice(bytes);
    Ok(Pool {
        entropy_count: buf_size.saturating_mul(8),
        buf_size,
        buf,
    })
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn all_bytes_are_added_and_credited() {
        for length in [MIN, 64, MAX] {
            let bytes: Vec<u8> = (1..=u8::MAX).cycle().take(length).collect();
            let pool = pool(&bytes).unwrap();
            let size = i32::try_from(length).unwrap();
            assert_eq!((pool.entropy_count, pool.buf_size), (8 * size, size));
            assert_eq!(pool.buf[..length], bytes);
            assert!(pool.buf[length..].iter().all(|byte| *byte == 0));
        }
        assert_eq!(offset_of!(Pool, buf), size_of::<[c_int; 2]>());
    }

    #[test]
    fn other_lengths_are_refused_without_the_bytes() {
        for length in [0, MIN - 1, MAX + 1, 1 << 20] {
            let refused = pool(&vec![0xa5; length]).map(drop).unwrap_err();
            let text = refused.to_string();
            assert_eq!(text, format!("entropy: expected 32 to 512 bytes, got {length}"));
            let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(refused) else {
                panic!("not a status")
            };
            assert_eq!(status.code(), ttrpc::Code::INVALID_ARGUMENT);
        }
    }
}
