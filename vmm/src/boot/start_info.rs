//! The PVH start info: where command line, initramfs, memory map and ACPI tables are (xen/include/public/arch-x86/
//! hvm/start_info.h). The kernel gets its address in EBX.

use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryRegion as _};

use super::Error;
use super::initrd::Placed;
use crate::machine::layout;
use crate::virtio::Memory;

const MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const VERSION: u32 = 1;
const RAM: u32 = 1;
const ACPI: u32 = 3;

/// A word that goes into memory as it is.
#[derive(Debug, Clone, Copy, Default)]
#[repr(transparent)]
struct Raw<T>(T);

mod raw {
    //! The three records are plain words in C layout.
    #![allow(unsafe_code, reason = "ByteValued is an unsafe trait")]

    use super::{ByteValued, Raw, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};

    // SAFETY: integers only, in C layout, without padding.
    unsafe impl ByteValued for Raw<hvm_start_info> {}
    // SAFETY: integers only, in C layout, without padding.
    unsafe impl ByteValued for Raw<hvm_modlist_entry> {}
    // SAFETY: integers only, in C layout, without padding.
    unsafe impl ByteValued for Raw<hvm_memmap_table_entry> {}
}

/// Writes command line and start info for a guest with `initrd` and ACPI tables at `rsdp`.
///
/// # Errors
/// [`Error::StartInfo`] where memory ends too early.
pub fn write(memory: &Memory, command_line: &str, initrd: Placed, rsdp: u64) -> Result<(), Error> {
    let mut line = command_line.as_bytes().to_vec();
    line.push(0);
    put(memory, layout::COMMAND_LINE, &line)?;

    let module = hvm_modlist_entry {
        paddr: initrd.address,
        size: initrd.bytes,
        ..Default::default()
    };
    put(memory, layout::MODULES, Raw(module).as_slice())?;

    let map = memory_map(memory);
    let mut at = layout::MEMORY_MAP;
    for entry in &map {
        put(memory, at, Raw(*entry).as_slice())?;
        at = at.saturating_add(size_of::<hvm_memmap_table_entry>() as u64);
    }

    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: 1,
        modlist_paddr: layout::MODULES,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).map_err(|error| Error::StartInfo(error.to_string()))?,
        ..Default::default()
    };
    put(memory, layout::START_INFO, Raw(info).as_slice())
}

fn put(memory: &Memory, address: u64, bytes: &[u8]) -> Result<(), Error> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|error| Error::StartInfo(format!("writing {} bytes at {address:#x}: {error}", bytes.len())))
}

fn memory_map(memory: &Memory) -> Vec<hvm_memmap_table_entry> {
    let entry = |addr, end: u64, type_| hvm_memmap_table_entry {
        addr,
        size: end.saturating_sub(addr),
        type_,
        reserved: 0,
    };
    let mut map = vec![
        entry(0, layout::LOW_RAM_END, RAM),
        entry(layout::ACPI, layout::ACPI_END, ACPI),
    ];
    map.extend(memory.iter().map(|region| {
        let start = region.start_addr().0;
        entry(
            start.max(layout::HIGH_RAM),
            start.saturating_add(region.len()),
            RAM,
        )
    }));
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stands_where_the_layout_says_with_everything_in_it() {
        let memory = crate::machine::memory::make(5 << 30).unwrap();
        write(
            &memory,
            "a=b",
            Placed {
                address: 0x20_0000,
                bytes: 5,
            },
            layout::ACPI,
        )
        .unwrap();
        let info: Raw<hvm_start_info> = memory.read_obj(GuestAddress(layout::START_INFO)).unwrap();
        assert_eq!(
            (info.0.magic, info.0.version, info.0.rsdp_paddr),
            (MAGIC, 1, layout::ACPI)
        );
        let line: [u8; 4] = memory.read_obj(GuestAddress(info.0.cmdline_paddr)).unwrap();
        assert_eq!(line, *b"a=b\0");
        let module: Raw<hvm_modlist_entry> = memory.read_obj(GuestAddress(info.0.modlist_paddr)).unwrap();
        assert_eq!((module.0.paddr, module.0.size), (0x20_0000, 5));
        assert_eq!(
            info.0.memmap_entries, 4,
            "low RAM, ACPI, RAM below and above 4 GiB"
        );
    }

    #[test]
    fn the_memory_map_has_all_ram_once_and_no_device_hole() {
        let memory = crate::machine::memory::make(5 << 30).unwrap();
        let map = memory_map(&memory);
        for pair in map.windows(2) {
            assert!(pair[0].addr + pair[0].size <= pair[1].addr, "{map:?}");
        }
        let last = map.last().unwrap();
        assert_eq!(
            (last.addr, last.size),
            (layout::RAM_ABOVE_4G, (5 << 30) - layout::MMIO)
        );
    }
}
