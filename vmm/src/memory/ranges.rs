//! Which guest-physical addresses are RAM: at boot, and later by hot-plug. Used by [`super::map`]. Pure.
//!
//! ```text
//! 0            boot RAM
//! MMIO         device windows, I/O APIC, local APICs, up to 4 GiB
//! 4 GiB        the boot RAM that does not fit below MMIO
//!              the hot-plug region, at the next multiple of HOTPLUG_ALIGNMENT
//! ```

use nacre_protocol::control::{MAX_PLUGGED_MIB, MEMORY_SECTION_MIB};

use crate::layout::{MMIO, RAM_ABOVE_4G};

/// Alignment of the hot-plug region's start and size, in bytes: the blocks in which Linux adds memory on
/// x86-64. It is a multiple of each block size of 2 MiB to 128 MiB, as virtio-mem requires (virtio 1.2,
/// 5.15.4).
pub const HOTPLUG_ALIGNMENT: u64 = (MEMORY_SECTION_MIB as u64) << 20;
/// Size of the hot-plug region in bytes. With boot RAM of up to 128 GiB the region ends below 2^39, the limit
/// of physical addresses on Intel's client processors; servers have more.
pub const HOTPLUG_BYTES: u64 = (MAX_PLUGGED_MIB as u64) << 20;

/// A contiguous range of guest-physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first address.
    pub start: u64,
    /// The size.
    pub bytes: u64,
}

impl Range {
    /// The address after the last one; `u64::MAX` at most.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start.saturating_add(self.bytes)
    }
}

/// All guest-physical addresses that are RAM or may become RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    /// RAM at boot: one range, or two around the device windows, in ascending order.
    pub boot: Vec<Range>,
    /// Where memory may be plugged in later. Reserved: nothing else of the guest has these addresses, and
    /// nothing is mapped there.
    pub hotplug: Range,
}

impl Ranges {
    /// The ranges for `bytes` of RAM at boot.
    #[must_use]
    pub fn of(bytes: u64) -> Self {
        let low = bytes.min(MMIO);
        let mut boot = vec![Range { start: 0, bytes: low }];
        if low < bytes {
            boot.push(Range {
                start: RAM_ABOVE_4G,
                bytes: bytes.saturating_sub(low),
            });
        }
        let end = boot.iter().map(|range| range.end()).fold(RAM_ABOVE_4G, u64::max);
        let hotplug = Range {
            start: end.next_multiple_of(HOTPLUG_ALIGNMENT),
            bytes: HOTPLUG_BYTES,
        };
        Self { boot, hotplug }
    }

    /// The size of the RAM at boot.
    #[must_use]
    pub fn boot_bytes(&self) -> u64 {
        self.boot.iter().map(|range| range.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{IO_APIC, PCI_CONFIG, PCI_WINDOW, PCI_WINDOW_BYTES, TSS};

    const SIZES: [u64; 8] = [
        4096,
        512 << 20,
        MMIO - 4096,
        MMIO,
        MMIO + 4096,
        4 << 30,
        (8 << 30) + 4096,
        1 << 40,
    ];

    #[test]
    fn boot_ram_has_the_asked_size_and_leaves_out_the_device_windows() {
        for bytes in SIZES {
            let ranges = Ranges::of(bytes);
            assert_eq!(ranges.boot_bytes(), bytes);
            for window in [
                PCI_CONFIG.into(),
                PCI_WINDOW.into(),
                (PCI_WINDOW + PCI_WINDOW_BYTES - 1).into(),
                IO_APIC.into(),
                TSS,
            ] {
                assert!(
                    ranges
                        .boot
                        .iter()
                        .all(|range| window < range.start || window >= range.end()),
                    "{window:#x} is in {ranges:x?}"
                );
            }
        }
        assert_eq!(Ranges::of(MMIO).boot.len(), 1);
        assert_eq!(
            Ranges::of(MMIO + 4096).boot[1],
            Range {
                start: RAM_ABOVE_4G,
                bytes: 4096
            }
        );
    }

    #[test]
    fn the_hotplug_region_is_aligned_and_above_everything_else() {
        for bytes in SIZES {
            let Ranges { boot, hotplug } = Ranges::of(bytes);
            let end_of_boot = boot.last().unwrap().end();
            assert!(hotplug.start >= end_of_boot.max(RAM_ABOVE_4G), "{bytes:#x}");
            assert!(
                hotplug.start < end_of_boot.max(RAM_ABOVE_4G) + HOTPLUG_ALIGNMENT,
                "{bytes:#x}"
            );
            for block in (21..=27).map(|bit| 1 << bit) {
                assert_eq!(
                    (hotplug.start % block, hotplug.bytes % block),
                    (0, 0),
                    "{bytes:#x}"
                );
            }
        }
        assert!(Ranges::of(128 << 30).hotplug.end() <= 1 << 39);
    }
}
