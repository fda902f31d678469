//! The guest-physical memory map, interrupt numbers (GSIs) and I/O ports. Constants only.
//!
//! ```text
//! 0x0000_0500  GDT                     0x0000_1000  zero page        0x0000_2000  kernel command line
//! 0x0000_3000  seed of the guest's random number generator
//! 0x0000_9000  page tables for the kernel's first instructions
//! 0x0009_fc00  end of conventional RAM (Linux puts its trampoline for secondary CPUs below)
//! 0x000e_0000  ACPI tables           0x000f_f000  VM generation id, in a page of its own
//! 0x0010_0000  RAM: the kernel at its link address (16 MiB by default), the initramfs at the end
//! 0xd000_0000  RAM ends here at the latest; PCI configuration space (ECAM) of one bus, 1 MiB
//! 0xd010_0000  PCI memory window: BAR 0 of each slot, then (0xd018_0000) BAR 1 of each slot
//! 0xfec0_0000  I/O APIC        0xfee0_0000  local APIC     0xfffb_c000  KVM's internal pages
//! 0x1_0000_0000  the remaining RAM, then the region for hot-plugged memory (memory::ranges)
//! ```

use std::ops::Range;

/// The GDT that the boot protocol requires.
pub const GDT: u64 = 0x500;
/// The zero page (`struct boot_params`).
pub const ZERO_PAGE: u64 = 0x1000;
/// Three pages of page tables.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line.
pub const COMMAND_LINE: u64 = 0x2000;
/// Longest kernel command line with its NUL, in bytes (COMMAND_LINE_SIZE of x86).
pub const COMMAND_LINE_BYTES: usize = 2048;
/// End of RAM below the legacy hole.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// A `struct setup_data` with the seed of the guest's random number generator.
pub const RANDOM_SEED: u64 = 0x3000;
/// The ACPI tables, the RSDP first.
pub const ACPI: u64 = 0xe_0000;
/// End of the area for ACPI tables.
pub const ACPI_END: u64 = 0xf_f000;
/// The VM generation id, 16 bytes. Its page has nothing else, and the E820 map reserves it: the guest neither
/// uses it as RAM nor reclaims it with the ACPI tables.
pub const GENERATION_ID: u64 = 0xf_f000;
/// End of the page of the VM generation id.
pub const GENERATION_ID_END: u64 = 0x10_0000;
/// Start of the RAM for kernel and initramfs.
pub const HIGH_RAM: u64 = 0x10_0000;
/// RAM below 4 GiB ends here at the latest; registers follow.
pub const MMIO: u64 = PCI_CONFIG as u64;
/// Start of the RAM that does not fit below [`MMIO`].
pub const RAM_ABOVE_4G: u64 = 0x1_0000_0000;

/// The PCI configuration spaces, [`crate::devices::pci::ECAM_BYTES`].
pub const PCI_CONFIG: u32 = 0xd000_0000;
/// The memory window of the PCI bus, from which the BARs are assigned.
pub const PCI_WINDOW: u32 = 0xd010_0000;
/// Its size, in bytes.
pub const PCI_WINDOW_BYTES: u32 = 0x10_0000;
/// Size of each BAR of a virtio function, in bytes.
pub const BAR_BYTES: u32 = 0x2000;

/// The I/O APIC's registers.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs' registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// The page that KVM on Intel processors uses for its identity map.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// The three pages that KVM on Intel processors uses for a TSS.
pub const TSS: u64 = 0xfffb_d000;

/// The serial port's first I/O port, of 8.
pub const SERIAL_PORT: u16 = 0x3f8;
/// The GSIs, each a pin of the I/O APIC. The virtio devices have none.
pub const GSIS: Range<u8> = SERIAL_GSI..GENERATION_ID_GSI + 1;
/// GSI of the serial port.
pub const SERIAL_GSI: u8 = 4;
/// GSI that reports a new VM generation id.
pub const GENERATION_ID_GSI: u8 = 5;
/// Index and data of the CMOS memory.
pub const CMOS_PORT: u16 = 0x70;
/// PCI configuration address (4 ports) and data (4 ports).
pub const PCI_PORT: u16 = 0xcf8;
/// pvpanic's I/O port.
pub const PVPANIC_PORT: u16 = 0x505;
/// The first of 3 I/O ports: sleep control, sleep status, reset.
pub const POWER_PORT: u16 = 0x600;

const _: () = assert!(PCI_WINDOW + PCI_WINDOW_BYTES <= IO_APIC);

/// The addresses of BAR 0 and BAR 1 of the function in `slot`. The first BARs of all slots are contiguous.
#[must_use]
pub const fn pci_bars(slot: u8) -> [u32; 2] {
    let bar0 = PCI_WINDOW + slot as u32 * BAR_BYTES;
    [bar0, bar0 + PCI_WINDOW_BYTES / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::pci;

    #[test]
    fn the_bars_of_all_slots_fit_into_the_window_and_do_not_overlap() {
        let mut ranges: Vec<u32> = (0..pci::MAX_SLOTS).flat_map(pci_bars).collect();
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            assert!(pair[0] + BAR_BYTES <= pair[1], "{pair:x?}");
        }
        assert!(ranges[0] >= PCI_WINDOW);
        let end = ranges[ranges.len() - 1] + BAR_BYTES;
        assert!(end <= PCI_WINDOW + PCI_WINDOW_BYTES);
        assert!(u64::from(PCI_CONFIG) + pci::ECAM_BYTES <= u64::from(PCI_WINDOW));
    }
}
