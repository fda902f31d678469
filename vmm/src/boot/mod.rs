//! Writes the initial content of guest memory: kernel, initramfs, command line, zero page. Called by the
//! machine's steps; never uses KVM.

pub mod cmdline;
pub mod initrd;
pub mod kernel;
pub mod zero_page;

/// Why the guest can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel is unusable.
    #[error("guest kernel: {0}")]
    Kernel(#[from] kernel::Error),
    /// The initramfs is unusable.
    #[error("guest image: {0}")]
    Initrd(#[from] initrd::Error),
    /// The command line is too long.
    #[error("kernel command line: {0}")]
    CommandLine(#[from] cmdline::Error),
    /// Guest memory can't hold kernel and initramfs with space to run.
    #[error(
        "memory_mib = {memory_mib} is too little: the kernel ({kernel_bytes} bytes, up to {kernel_end:#x}) and the \
         guest image ({initrd_bytes} bytes) need at least memory_mib = {minimum_mib}"
    )]
    TooLittleMemory {
        /// The configured size.
        memory_mib: u32,
        /// The least size that is accepted.
        minimum_mib: u64,
        /// Sum of the kernel's segments.
        kernel_bytes: u64,
        /// Physical address after the kernel.
        kernel_end: u64,
        /// Size of the initramfs file.
        initrd_bytes: u64,
    },
    /// The zero page can't be filled or written.
    #[error("zero page: {0}")]
    ZeroPage(String),
    /// The host has no random bytes for the guest.
    #[error("seed of the guest's random number generator: {0}")]
    Seed(std::io::Error),
}

/// Memory that a guest needs besides its kernel and the initramfs as archive and as files, in bytes: page
/// tables and the data of kernel and agent. Found by trial with the project's kernel and agent: with the
/// resulting minimum the agent starts. Containers need more.
const WORKING_BYTES: u64 = 24 << 20;

/// Checks that `memory_mib` suffices for `kernel` and an initramfs of `initrd_bytes`, with space to run.
///
/// # Errors
/// [`Error::TooLittleMemory`] with the minimum.
pub fn check_memory_size(memory_mib: u32, kernel: &kernel::Image, initrd_bytes: u64) -> Result<(), Error> {
    let least = kernel
        .end
        .saturating_add(initrd_bytes.saturating_mul(2))
        .saturating_add(WORKING_BYTES);
    let minimum_mib = least.div_ceil(1 << 20);
    if u64::from(memory_mib) < minimum_mib {
        return Err(Error::TooLittleMemory {
            memory_mib,
            minimum_mib,
            kernel_bytes: kernel.loaded_bytes(),
            kernel_end: kernel.end,
            initrd_bytes,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_for_too_little_memory_has_key_value_and_minimum() {
        let kernel = kernel::Image {
            entry: 0x100_0000,
            end: 0x200_0000,
            segments: Vec::new(),
        };
        let text = check_memory_size(8, &kernel, 4 << 20).unwrap_err().to_string();
        assert!(
            text.contains("memory_mib = 8 ") && text.contains("memory_mib = 64"),
            "{text}"
        );
        assert!(check_memory_size(63, &kernel, 4 << 20).is_err());
        assert!(check_memory_size(64, &kernel, 4 << 20).is_ok());
        assert!(
            check_memory_size(u32::MAX, &kernel, u64::MAX).is_err(),
            "no overflow"
        );
    }
}
