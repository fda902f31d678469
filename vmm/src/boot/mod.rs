//! What stands in guest memory when the guest starts: kernel, initramfs, command line, zero page. Called by the
//! machine's steps; works on any guest memory, without KVM.

pub mod cmdline;
pub mod initrd;
pub mod kernel;
pub mod zero_page;

/// Why the guest could not be put into memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel file.
    #[error("guest kernel: {0}")]
    Kernel(#[from] kernel::Error),
    /// The initramfs file.
    #[error("guest image: {0}")]
    Initrd(#[from] initrd::Error),
    /// The command line.
    #[error("kernel command line: {0}")]
    CommandLine(#[from] cmdline::Error),
    /// More is to be loaded than memory holds.
    #[error(
        "memory_mib = {memory_mib} is too little: kernel ({kernel_bytes} bytes, up to {kernel_end:#x}) and image \
         ({initrd_bytes} bytes) need at least memory_mib = {minimum_mib}"
    )]
    TooLittleMemory {
        /// What was asked for.
        memory_mib: u32,
        /// The least that could work.
        minimum_mib: u64,
        /// Size of the kernel in memory.
        kernel_bytes: u64,
        /// Where it ends.
        kernel_end: u64,
        /// Size of the initramfs.
        initrd_bytes: u64,
    },
    /// The boot information could not be written.
    #[error("boot information: {0}")]
    ZeroPage(String),
}

/// What a guest needs beside its kernel and the initramfs in both its packed and its unpacked form, bytes: page
/// tables, the kernel's own data, the agent's. Tried with the project's kernel and agent: at the least that this gives,
/// the agent starts; a container needs its own memory on top.
const WORKING_BYTES: u64 = 24 << 20;

/// Checks that `memory_mib` can hold a kernel and an initramfs of these sizes and leave room to work.
///
/// # Errors
/// [`Error::TooLittleMemory`] with the minimum.
pub fn check_room(memory_mib: u32, kernel: &kernel::Image, initrd_bytes: u64) -> Result<(), Error> {
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
    fn too_little_memory_names_the_key_its_value_and_the_minimum() {
        let kernel = kernel::Image {
            entry: 0x100_0000,
            end: 0x200_0000,
            segments: Vec::new(),
        };
        let text = check_room(8, &kernel, 4 << 20).unwrap_err().to_string();
        assert!(
            text.contains("memory_mib = 8 ") && text.contains("memory_mib = 64"),
            "{text}"
        );
        assert!(check_room(63, &kernel, 4 << 20).is_err());
        assert!(check_room(64, &kernel, 4 << 20).is_ok());
        assert!(check_room(u32::MAX, &kernel, u64::MAX).is_err(), "no overflow");
    }
}
