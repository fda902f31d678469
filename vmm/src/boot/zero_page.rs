//! Writes the data of the 64-bit boot protocol (Documentation/arch/x86/boot.rst, "64-bit boot protocol"): the
//! zero page with the addresses of command line, initramfs and ACPI tables and with the memory map; page
//! tables that map the first GiB to itself; a GDT; a seed for the random number generator. Called by the
//! machine's steps.
//!
//! The kernel has a PVH entry point, too, which is not used: there Linux searches 256 CPUID leaves for Xen,
//! and each costs an exit.

use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryRegion as _};

use super::Error;
use super::initrd::Location;
use crate::layout;
use crate::memory::Memory;

const PAGE: usize = 4096;
/// E820 types: usable RAM, reserved, ACPI reclaimable.
const RAM: u32 = 1;
const RESERVED: u32 = 2;
const ACPI: u32 = 3;
/// Page table entry: present, writable.
const PRESENT: u64 = 0b11;
/// Page directory entry: maps 2 MiB.
const LARGE: u64 = 1 << 7;
/// The type of a `struct setup_data` whose data seed the random number generator (SETUP_RNG_SEED). The kernel
/// credits them, and overwrites them with zeros.
const SETUP_RNG_SEED: u32 = 9;
/// The GDT: two null descriptors, 64-bit code at selector 0x10, data at 0x18.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Random bytes of the host.
pub type Seed = [u8; 32];

/// A zero page that is being filled.
struct ZeroPage([u8; PAGE]);

impl ZeroPage {
    /// Sets the field at `offset` of `struct boot_params`.
    fn set(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        let end = offset.saturating_add(bytes.len());
        let field = self.0.get_mut(offset..end);
        let field =
            field.ok_or_else(|| Error::ZeroPage(format!("the field at {offset:#x} exceeds the page")))?;
        field.copy_from_slice(bytes);
        Ok(())
    }

    /// Sets a 64-bit value whose halves are in two fields.
    fn set_split(&mut self, low: usize, high: usize, value: u64) -> Result<(), Error> {
        let [b0, b1, b2, b3, rest @ ..] = value.to_le_bytes();
        self.set(low, &[b0, b1, b2, b3])?;
        self.set(high, &rest)
    }
}

/// Writes all boot data for a guest with `command_line`, `initrd` and ACPI tables whose RSDP is at `rsdp`.
/// The guest's random number generator starts with `seed`.
///
/// # Errors
/// [`Error::ZeroPage`] if guest memory is too small for it.
pub fn write(
    memory: &Memory,
    command_line: &str,
    initrd: Location,
    rsdp: u64,
    seed: Seed,
) -> Result<(), Error> {
    write_bytes(memory, layout::COMMAND_LINE, command_line.as_bytes())?;
    write_bytes(memory, layout::RANDOM_SEED, &setup_data(SETUP_RNG_SEED, seed))?;
    write_bytes(memory, layout::ZERO_PAGE, &zero_page(memory, initrd, rsdp)?.0)?;
    write_bytes(memory, layout::GDT, &words(GDT))?;
    let directory = (0..512u64).map(|index| index << 21 | PRESENT | LARGE);
    write_bytes(
        memory,
        layout::PAGE_TABLES,
        &((layout::PAGE_TABLES + 0x1000) | PRESENT).to_le_bytes(),
    )?;
    write_bytes(
        memory,
        layout::PAGE_TABLES + 0x1000,
        &((layout::PAGE_TABLES + 0x2000) | PRESENT).to_le_bytes(),
    )?;
    write_bytes(memory, layout::PAGE_TABLES + 0x2000, &words(directory))
}

/// A `struct setup_data`, the last of its list: next, type, length, data.
fn setup_data(kind: u32, data: Seed) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap_or_default();
    let header = [[0; 8].as_slice(), &kind.to_le_bytes(), &length.to_le_bytes()];
    [header.concat().as_slice(), &data].concat()
}

fn words(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn zero_page(memory: &Memory, initrd: Location, rsdp: u64) -> Result<ZeroPage, Error> {
    let mut page = ZeroPage([0; PAGE]);
    // acpi_rsdp_addr
    page.set(0x70, &rsdp.to_le_bytes())?;
    // boot_flag, header
    page.set(0x1fe, &0xaa55u16.to_le_bytes())?;
    page.set(0x202, b"HdrS")?;
    // version: 2.15
    page.set(0x206, &0x020fu16.to_le_bytes())?;
    // type_of_loader: undefined; loadflags: LOADED_HIGH
    page.set(0x210, &[0xff, 1])?;
    // ramdisk_image, ramdisk_size, cmd_line_ptr, each with its upper half (ext_…)
    page.set_split(0x218, 0xc0, initrd.address)?;
    page.set_split(0x21c, 0xc4, initrd.bytes)?;
    page.set_split(0x228, 0xc8, layout::COMMAND_LINE)?;
    // setup_data
    page.set(0x250, &layout::RANDOM_SEED.to_le_bytes())?;
    let map = memory_map(memory);
    // e820_entries, e820_table
    page.set(
        0x1e8,
        &[u8::try_from(map.len()).map_err(|error| Error::ZeroPage(error.to_string()))?],
    )?;
    let mut offset = 0x2d0_usize;
    for (start, end, memory_type) in map {
        page.set(offset, &start.to_le_bytes())?;
        page.set(offset.saturating_add(8), &end.saturating_sub(start).to_le_bytes())?;
        page.set(offset.saturating_add(16), &memory_type.to_le_bytes())?;
        offset = offset.saturating_add(20);
    }
    Ok(page)
}

fn write_bytes(memory: &Memory, address: u64, bytes: &[u8]) -> Result<(), Error> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|error| Error::ZeroPage(format!("writing {} bytes at {address:#x}: {error}", bytes.len())))
}

/// The E820 map: start, end and type of each range.
fn memory_map(memory: &Memory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::LOW_RAM_END, RAM),
        (layout::ACPI, layout::ACPI_END, ACPI),
        (layout::GENERATION_ID, layout::GENERATION_ID_END, RESERVED),
    ];
    map.extend(memory.iter().map(|region| {
        let start = region.start_addr().0;
        (
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

    fn read<const N: usize>(memory: &Memory, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn written_memory() -> Memory {
        let memory = crate::memory::allocate(5 << 30).unwrap();
        write(
            &memory,
            "a=b",
            Location {
                address: 0x20_0000,
                bytes: 5,
            },
            layout::ACPI,
            [7; 32],
        )
        .unwrap();
        memory
    }

    #[test]
    fn the_zero_page_has_all_fields_at_the_offsets_of_the_protocol() {
        let memory = written_memory();
        let page: [u8; PAGE] = read(&memory, layout::ZERO_PAGE);
        assert_eq!(page[0x1fe..0x200], [0x55, 0xaa]);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(page[0x70..0x78], layout::ACPI.to_le_bytes());
        assert_eq!(page[0x218..0x220], [0, 0, 0x20, 0, 5, 0, 0, 0]);
        assert_eq!(page[0x228..0x22c], [0, 0x20, 0, 0]);
        assert_eq!(read(&memory, layout::COMMAND_LINE), *b"a=b\0");
        assert_eq!(page[0x250..0x258], layout::RANDOM_SEED.to_le_bytes());
        let seed: [u8; 48] = read(&memory, layout::RANDOM_SEED);
        assert_eq!(seed[..16], [0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 32, 0, 0, 0]);
        assert_eq!(seed[16..], [7; 32]);
        assert_eq!(
            page[0x1e8], 5,
            "low RAM, ACPI, reserved, RAM below and above 4 GiB"
        );
        assert_eq!(page[0x2d0 + 4 * 20..][..8], layout::RAM_ABOVE_4G.to_le_bytes());
        assert_eq!(
            page[0x1ef], 0,
            "a sentinel of 0: the loader has cleared unused fields"
        );
    }

    #[test]
    fn the_first_gib_is_identity_mapped() {
        let memory = written_memory();
        let word = |address| u64::from_le_bytes(read(&memory, address));
        let directory_pointers = word(layout::PAGE_TABLES) & !0xfff;
        let directory = word(directory_pointers) & !0xfff;
        for index in [0, 1, 511] {
            assert_eq!(word(directory + index * 8), index << 21 | 0x83);
        }
    }

    #[test]
    fn the_generation_id_is_aligned_and_in_a_reserved_page_of_its_own() {
        let memory = crate::memory::allocate(5 << 30).unwrap();
        let id = (layout::GENERATION_ID, layout::GENERATION_ID + 16);
        let overlapping: Vec<_> = memory_map(&memory)
            .into_iter()
            .filter(|(start, end, _)| *start < id.1 && id.0 < *end)
            .collect();
        assert_eq!(overlapping, [(id.0 & !0xfff, (id.0 & !0xfff) + 4096, RESERVED)]);
        assert_eq!(id.0 % 8, 0);
    }

    #[test]
    fn the_memory_map_has_all_ram_once_and_no_mmio_hole() {
        let memory = crate::memory::allocate(5 << 30).unwrap();
        let map = memory_map(&memory);
        for pair in map.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "{map:?}");
        }
        let (start, end, _) = *map.last().unwrap();
        assert_eq!(
            (start, end - start),
            (layout::RAM_ABOVE_4G, (5 << 30) - layout::MMIO)
        );
    }
}
