//! Where everything stands in guest-physical memory and in port space. Nothing here acts.
//!
//! ```text
//! 0x0000_0000  zero page and real-mode remains (the AP trampoline lives below 640 KiB)
//! 0x0000_0500  descriptor table        0x0000_1000  zero page        0x0000_2000  kernel command line
//! 0x0000_9000  page tables for the kernel's first instructions
//! 0x0009_fc00  end of low RAM                             0x000e_0000  ACPI tables, to 1 MiB
//! 0x0010_0000  RAM; the kernel at its own address (16 MiB by default); the initramfs at the end of low RAM
//! 0xd000_0000  end of low RAM at most; virtio-mmio windows, one page each
//! 0xfec0_0000  I/O APIC        0xfee0_0000  local APIC     0xfffb_c000  KVM's own pages
//! 0x1_0000_0000  the rest of RAM
//! ```

/// The descriptor table that the boot protocol asks for.
pub const DESCRIPTOR_TABLE: u64 = 0x500;
/// The zero page: what the kernel is told.
pub const ZERO_PAGE: u64 = 0x1000;
/// Three pages of page tables.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line.
pub const COMMAND_LINE: u64 = 0x2000;
/// Longest kernel command line with its NUL, bytes (COMMAND_LINE_SIZE of x86).
pub const COMMAND_LINE_BYTES: usize = 2048;
/// End of RAM below the legacy hole.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables, the RSDP first.
pub const ACPI: u64 = 0xe_0000;
/// End of the ACPI tables' room.
pub const ACPI_END: u64 = 0x10_0000;
/// Where RAM for kernel and initramfs starts.
pub const HIGH_RAM: u64 = 0x10_0000;
/// RAM below 4 GiB ends here at the latest; devices follow.
pub const MMIO: u64 = 0xd000_0000;
/// RAM beyond [`MMIO`] goes on here.
pub const RAM_ABOVE_4G: u64 = 0x1_0000_0000;

/// A virtio-mmio device's window.
pub const MMIO_WINDOW: u64 = 0x1000;
/// Most virtio devices: one interrupt line each.
pub const MAX_VIRTIO: u8 = 16;
/// Interrupt line of the first virtio device.
pub const VIRTIO_GSI: u8 = 5;

/// I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// KVM's identity-map page, needed on Intel processors.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// KVM's three TSS pages, needed on Intel processors.
pub const TSS: u64 = 0xfffb_d000;

/// The serial console's first port, of 8.
pub const SERIAL_PORT: u16 = 0x3f8;
/// The serial console's interrupt line.
pub const SERIAL_GSI: u8 = 4;
/// PCI configuration: address and data.
pub const PCI_PORT: u16 = 0xcf8;
/// pvpanic, 1 port.
pub const PANIC_PORT: u16 = 0x505;
/// Sleep control, sleep status, reset: 3 ports.
pub const POWER_PORT: u16 = 0x600;

/// Where the window of the `index`th virtio device starts.
#[must_use]
pub const fn mmio_window(index: u8) -> u64 {
    MMIO + index as u64 * MMIO_WINDOW
}

/// Interrupt line of the `index`th virtio device.
#[must_use]
pub const fn virtio_gsi(index: u8) -> u8 {
    VIRTIO_GSI + index
}

/// RAM of `bytes`, as `(start, length)`: one or two parts.
#[must_use]
pub fn ram(bytes: u64) -> Vec<(u64, u64)> {
    match bytes.checked_sub(MMIO) {
        None | Some(0) => vec![(0, bytes)],
        Some(rest) => vec![(0, MMIO), (RAM_ABOVE_4G, rest)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_device_hole_free() {
        assert_eq!(ram(512 << 20), [(0, 512 << 20)]);
        assert_eq!(ram(MMIO), [(0, MMIO)]);
        assert_eq!(ram(MMIO + 4096), [(0, MMIO), (RAM_ABOVE_4G, 4096)]);
        let total: u64 = ram(8 << 30).iter().map(|(_, length)| length).sum();
        assert_eq!(total, 8 << 30);
    }

    #[test]
    fn interrupt_lines_fit_the_io_apic() {
        assert!(virtio_gsi(MAX_VIRTIO - 1) < 24);
        assert!(mmio_window(MAX_VIRTIO) < u64::from(IO_APIC));
    }
}
